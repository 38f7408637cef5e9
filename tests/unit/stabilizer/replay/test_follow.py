"""Growing logs, judged as live runs: the file system and time belong to the test."""

import json
from datetime import UTC, datetime

import pytest

from stabilizer.cli.follow import watch
from stabilizer.errors import InvalidInputError, TelemetryError
from stabilizer.protocol.batches import BatchAnswer, SamplingPlan
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.runs import Attempt, Run, RunRegistered, RunState
from stabilizer.replay.follow import LocalFollower, LogWatcher, UploadingFollower
from stabilizer.replay.upload import MAX_STEPS, RunUploader
from stabilizer.rules.loader import load_rules

RULES = load_rules("""
rules:
  - {name: high, select: {metric: loss}, detect: {threshold: {above: 10}}, severity: divergence}
policy:
  ladder: [{reduce_lr: {factor: 0.5, steps: 20}}, pause]
  act_on: {any: ["severity:divergence"]}
  quiet: 2
""")


def append(path, first, losses):
    with path.open("a") as file:
        for index, loss in enumerate(losses):
            file.write(json.dumps({"step": first + index, "loss": loss}) + "\n")


class Printed(list):
    def __call__(self, line):
        self.append(line)


@pytest.fixture
def printed():
    return Printed()


@pytest.fixture
def watching(printed):
    started = []

    def start(*patterns, format_=None):
        patterns = [str(pattern) for pattern in patterns]
        watcher = LogWatcher(
            patterns, format_, lambda n, _: LocalFollower(n, RULES, printed), printed
        )
        started.append(watcher)
        return watcher

    yield start
    for watcher in started:
        watcher.finish()


def test_alerts_are_printed_as_the_log_grows(tmp_path, watching, printed):
    log = tmp_path / "run.jsonl"
    watcher = watching(log)
    assert watcher.poll() == 0
    append(log, 1, [2.0] * 5)
    assert watcher.poll() == 5
    append(log, 6, [50.0])
    watcher.poll()
    assert not [line for line in printed if "high" in line]  # more of step 6 may come
    watcher.poll()
    assert "run step 6: divergence: high fires on loss at 50" in printed
    (decision,) = [line for line in printed if "incident 1" in line]
    assert "hold" in decision  # mode observe: nothing is commanded
    assert "multiply the learning rate by 0.5" in decision
    append(log, 7, [2.0] * 5)
    watcher.poll()
    assert "run step 7: high is over" in printed
    watcher.finish()
    assert printed[-1] == "run: followed to step 11: 11 steps, 1 alerts"


def test_a_restart_of_the_job_is_printed_and_begins_an_attempt(tmp_path, watching, printed):
    log = tmp_path / "run.jsonl"
    watcher = watching(log)
    append(log, 1, [2.0] * 20)
    watcher.poll()
    append(log, 11, [2.0] * 3)
    watcher.poll()
    assert "run: the job continues from step 11" in printed
    watcher.finish()


def test_patterns_find_new_logs_and_folders_of_event_files_are_one_run(tmp_path, watching, printed):
    watcher = watching(tmp_path / "*.jsonl", tmp_path / "events")
    (tmp_path / "events").mkdir()
    for name in ("a", "b"):
        append(tmp_path / f"{name}.jsonl", 1, [2.0])
        watcher.poll()
    for number in (1, 2):
        (tmp_path / "events" / f"events.out.tfevents.{number}").touch()
        watcher.poll()
    assert watcher.num_runs == 3
    assert [line for line in printed if line.startswith("following")] == [
        f"following {tmp_path / name}" for name in ("a.jsonl", "b.jsonl", "events")
    ]


def test_a_log_that_cannot_be_read_does_not_stop_the_others(tmp_path, watching, printed):
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    bad.write_text('"Step","a - loss","b - loss"\n1,2,3\n')
    good.write_text("step,loss\n1,2\n")
    watcher = watching(bad, good)
    watcher.poll()
    watcher.poll()
    assert [line for line in printed if "no longer followed" in line and "2 runs" in line]
    assert watcher.num_runs == 1
    assert watcher.poll() == 0


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds


def test_following_ends_when_the_log_is_idle(tmp_path, watching, printed):
    log = tmp_path / "run.jsonl"
    clock, script = Clock(), [lambda: append(log, 1, [2.0]), lambda: append(log, 2, [2.0])]

    def sleep(seconds):
        clock.seconds += seconds
        if script:
            script.pop(0)()

    watch(watching(log), clock, sleep, every=1.0, until_idle=5.0)
    assert clock.seconds == 7.0
    assert printed[-1].startswith("run: followed to step 2")


def test_ctrl_c_ends_in_order(tmp_path, watching, printed):
    def sleep(_seconds):
        raise KeyboardInterrupt

    append(tmp_path / "run.jsonl", 1, [2.0])
    watch(watching(tmp_path / "run.jsonl"), Clock(), sleep, every=1.0, until_idle=None)
    assert printed[-1].startswith("run: followed to step 1")


class MemoryStore:
    """A collector in memory that fails on demand."""

    def __init__(self):
        self.registered = []
        self.batches = {}
        self.steps = {}
        self.starts = {}
        self.states = []
        self.failing = 0
        self.losing = 0
        self.refusing = False

    def _enter(self):
        if self.refusing:
            raise InvalidInputError("no", field="x")
        if self.failing > 0:
            self.failing -= 1
            raise TelemetryError("down")

    def register(self, register):
        self._enter()
        self.registered.append(register)
        self.starts.setdefault(register.attempt_id, None)
        return RunRegistered(
            run_id="r", attempt=1, plan=SamplingPlan(), mode=Mode.OBSERVE, protocol_version=2
        )

    def run(self, run_id):
        self._enter()
        attempts = tuple(
            Attempt.model_construct(number=number, last_step=self.steps.get(name, [-1])[-1])
            for number, name in enumerate(self.starts, start=1)
        )
        return Run.model_construct(attempts=attempts)

    def add_catalogs(self, run_id, message):
        self._enter()

    def send(self, run_id, header, blocks):
        self._enter()
        stored = self.batches.setdefault(header.attempt_id, [])
        self.starts.setdefault(header.attempt_id, header.attempt_start)
        duplicate = header.sequence < len(stored)
        if not duplicate:
            assert header.sequence == len(stored)
            stored.append(len(blocks[0].steps))
            self.steps.setdefault(header.attempt_id, []).extend(blocks[0].steps.tolist())
        if self.losing > 0:
            self.losing -= 1
            raise TelemetryError("the answer was lost")
        return self._answer(header.attempt_id, duplicate=duplicate)

    def heartbeat(self, run_id, heartbeat):
        self._enter()
        self.states.append(heartbeat.state)
        return self._answer(heartbeat.attempt_id)

    def _answer(self, attempt_id, *, duplicate=False):
        numbers = {name: number for number, name in enumerate(self.starts, start=1)}
        return BatchAnswer(
            attempt=numbers.get(attempt_id, 0),
            accepted_sequence=len(self.batches.get(attempt_id, ())) - 1,
            duplicate=duplicate,
        )


def uploading(store, log, printed):
    def make(name, _place):
        return UploadingFollower(name, RunUploader(store, name, "key", None, 1e9), printed)

    return LogWatcher([str(log)], None, make, printed)


def test_a_run_is_sent_in_batches_and_ended(tmp_path, printed):
    store, log = MemoryStore(), tmp_path / "run.jsonl"
    append(log, 1, [2.0] * (MAX_STEPS + 44))
    watcher = uploading(store, log, printed)
    watcher.poll()
    watcher.poll()
    watcher.finish()
    (batches,) = store.batches.values()
    assert batches == [MAX_STEPS, 43, 1]
    assert next(iter(store.steps.values())) == list(range(1, MAX_STEPS + 45))
    (register,) = store.registered
    assert (register.name, register.key, register.mode) == ("run", "key", Mode.OBSERVE)
    assert store.states[-1] is RunState.FINISHED
    assert "run: run r" in printed


def test_restarts_of_the_job_are_attempts_of_one_run(tmp_path, printed):
    store, log = MemoryStore(), tmp_path / "run.jsonl"
    append(log, 1, [2.0] * 10)
    append(log, 6, [3.0] * 10)
    watcher = uploading(store, log, printed)
    watcher.poll()
    watcher.finish()
    first, second = store.starts
    assert store.starts[second].from_step == 5
    assert store.starts[second].parent_id == store.starts[second].origin_id == first
    assert store.steps == {first: list(range(1, 11)), second: list(range(6, 16))}


def test_following_again_sends_only_what_is_new(tmp_path, printed):
    store, log = MemoryStore(), tmp_path / "run.jsonl"
    append(log, 1, [2.0] * 10)
    append(log, 6, [3.0] * 3)
    for _ in range(2):
        watcher = uploading(store, log, printed)
        watcher.poll()
        watcher.finish()
    append(log, 9, [3.0] * 3)
    watcher = uploading(store, log, printed)
    watcher.poll()
    watcher.finish()
    assert [*store.steps.values()] == [list(range(1, 11)), list(range(6, 12))]


@pytest.mark.parametrize("failures", range(1, 12))
def test_an_outage_loses_nothing_and_repeats_nothing(tmp_path, printed, failures):
    store, log = MemoryStore(), tmp_path / "run.jsonl"
    watcher = uploading(store, log, printed)
    first = 1
    for count in (5, 300, 7):
        store.failing = failures
        store.losing = failures % 3
        append(log, first, [2.0] * count)
        first += count
        watcher.poll()
    for _ in range(40):
        watcher.poll()
    watcher.finish()
    assert [*store.steps.values()] == [list(range(1, first))]
    assert len([line for line in printed if "trying again" in line]) <= 6


def test_a_run_that_is_refused_is_dropped(tmp_path, printed):
    store, log = MemoryStore(), tmp_path / "run.jsonl"
    store.refusing = True
    append(log, 1, [2.0])
    watcher = uploading(store, log, printed)
    for _ in range(3):
        watcher.poll()
    assert watcher.num_runs == 0
    assert [line for line in printed if "no longer followed: no" in line]


def test_times_are_those_of_the_log_or_of_now(tmp_path, printed):
    store, seen = MemoryStore(), []
    send = store.send

    def note(run_id, header, blocks):
        seen.extend(blocks[0].times.tolist())
        return send(run_id, header, blocks)

    store.send = note
    log = tmp_path / "run.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 2.0, "timestamp": 1.7e9}\n')
    watcher = uploading(store, log, printed)
    watcher.poll()
    watcher.finish()
    assert seen == [1e9, 1.7e9]
    assert datetime.fromtimestamp(seen[1], UTC).year == 2023
