import threading

import numpy as np
import pytest

from stabilizer.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ProtocolVersionError,
    RuleFileError,
)
from stabilizer.protocol.decisions import AlertState
from stabilizer.protocol.message import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from stabilizer.protocol.queries import RunQuery, RunSort
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat, RunRegister, RunState, RunUpdate
from stabilizer.protocol.series import Catalog

ADA = "person:ada"


def beat(services, run_id, **changes):
    heartbeat = Heartbeat(**{"attempt": 1, "step": 0} | changes)
    return services.runs.heartbeat(run_id, heartbeat)


class TestRegister:
    def test_a_new_run_is_running_in_its_first_attempt(self, services, make, clock):
        config = {"lr": 3e-4, "layers": [1, 2], "bad": float("nan")}
        register = make.register(config=config, world_size=8, key="job 7", git_revision="abc")
        answer = services.runs.register(register)
        run = services.runs.get(answer.run_id)
        assert (answer.attempt, answer.mode, answer.plan.every) == (1, "auto", 10)
        assert (run.state, run.key, run.world_size, run.step) == ("running", "job 7", 8, 0)
        assert repr(run.config) == repr(config)
        assert run.created_at == run.last_seen_at == clock.now()
        assert [(a.number, a.parent) for a in run.attempts] == [(1, None)]

    def test_the_same_name_and_key_come_back_to_the_same_run(self, services, run_id, make):
        answer = services.runs.register(make.register(start_step=70))
        assert (answer.run_id, answer.attempt) == (run_id, 2)
        run = services.runs.get(run_id)
        assert (run.attempt, run.step) == (2, 70)
        second = run.attempts[1]
        assert (second.from_step, second.parent, second.reason) == (70, 1, "resume")
        assert services.runs.register(make.register(key="other")).run_id != run_id

    def test_what_a_rollback_gives_back_is_that_of_the_newest_process(self, services, run_id, make):
        assert services.runs.get(run_id).rewind is None  # a job that does not say
        services.runs.register(make.register(rewind="none", rewind_reason="read only once"))
        run = services.runs.get(run_id)
        assert (run.rewind, run.rewind_reason) == ("none", "read only once")
        services.runs.register(make.register(rewind="exact"))
        run = services.runs.get(run_id)
        assert (run.rewind, run.rewind_reason) == ("exact", "")

    def test_many_at_once_are_one_run(self, open_services, make, backend):
        collectors = [open_services()]
        if backend == "postgresql":
            collectors.append(open_services())
        answers, barrier = [], threading.Barrier(4)

        def register(number):
            barrier.wait(10)
            services = collectors[number % len(collectors)]
            answers.append(services.runs.register(make.register()))

        threads = [threading.Thread(target=register, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len({answer.run_id for answer in answers}) == 1
        assert sorted(answer.attempt for answer in answers) == [1, 2, 3, 4]

    @pytest.mark.parametrize("version", [MIN_PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
    def test_another_protocol_is_refused_with_both_versions_named(self, services, make, version):
        with pytest.raises(ProtocolVersionError) as caught:
            services.runs.register(make.register(protocol_version=version))
        assert f"version {version};" in str(caught.value)
        assert f"{MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}" in str(caught.value)
        assert services.runs.list(RunQuery()).total == 0

    def test_a_policy_with_mistakes_is_refused_with_all_of_them(self, services, make):
        text = "rules: [{name: Bad Name}]\npolicy: {ladder: []}\n"
        with pytest.raises(RuleFileError) as caught:
            services.runs.register(make.register(policy=text))
        assert len(caught.value.exceptions) > 2
        assert services.runs.list(RunQuery()).total == 0

    def test_without_a_policy_the_collectors_rules_judge(self, open_services, make, tmp_path):
        file = tmp_path / "rules.yaml"
        file.write_text(make.rules)
        services = open_services(rules_file=file)
        register = RunRegister(protocol_version=PROTOCOL_VERSION, name="plain")
        rules = services.queries.rules(services.runs.register(register).run_id)
        assert rules.text == make.rules
        assert [rule.name for rule in rules.health] == ["loss_high", "gradient_high"]

    def test_what_an_operator_set_stays_unless_the_job_asks(self, services, run_id, make):
        services.runs.update(run_id, RunUpdate(mode="observe", reason="carefully"), ADA)
        assert services.runs.register(make.register()).mode == "observe"
        assert services.runs.register(make.register(mode="propose")).mode == "propose"

    def test_other_rules_close_what_the_old_ones_had_open(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(0, range(1, 4), 50.0))
        stricter = make.rules.replace("above: 10", "above: 1")
        services.runs.register(make.register(policy=stricter, start_step=3))
        (incident,) = services.queries.incidents(run_id)
        assert (incident.state, incident.reason) == ("resolved", "run_ended")
        assert services.queries.alerts(run_id, AlertState.FIRING) == []
        # A resume holds rules still for a while.
        services.ingest.accept(run_id, make.batch(0, range(60, 70), 2.0, attempt=2))
        newest = services.queries.incidents(run_id)[0]
        assert (newest.number, newest.state) == (2, "acting")
        assert services.commands.list(run_id)[-1].incident_id == newest.id

    def test_catalogs_can_come_later_and_twice(self, services, run_id):
        catalogs = (Catalog.of(["a", "b"]), Catalog.of(["loss", "grad_norm"]))
        message = CatalogsAdd(catalogs=catalogs)
        ids = services.runs.add_catalogs(run_id, message)
        assert services.runs.add_catalogs(run_id, message) == ids
        assert ids == tuple(catalog.id for catalog in catalogs)
        assert [info.series for info in services.queries.series(run_id)] == [
            "loss",
            "grad_norm",
            "a",
            "b",
        ]


class TestState:
    def test_the_job_says_what_it_does(self, services, run_id):
        for state in ("paused", "running", "finished"):
            beat(services, run_id, state=state, step=5, message=f"now {state}")
            assert services.runs.get(run_id).state == state
        changes = [
            entry.after["state"]
            for entry in services.queries.audit(run_id).entries
            if entry.action == "run_state_changed"
        ]
        assert changes == ["paused", "running", "finished"]

    def test_the_end_resolves_what_is_open(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(0, range(1, 4), 50.0))
        assert services.runs.get(run_id).open_incident_id is not None
        beat(services, run_id, state="failed", step=3)
        run = services.runs.get(run_id)
        assert (run.state, run.open_incident_id) == ("failed", None)
        assert services.queries.incidents(run_id)[0].reason == "run_ended"

    def test_one_that_ended_comes_back_by_registering(self, services, run_id, make):
        beat(services, run_id, state="finished")
        services.runs.register(make.register())
        assert services.runs.get(run_id).state == "running"

    def test_a_word_from_an_attempt_gone_by_changes_nothing(self, services, run_id, make, clock):
        services.runs.register(make.register())
        before = services.runs.get(run_id)
        clock.advance(1)
        answer = beat(services, run_id, attempt=1, step=900, state="failed")
        assert services.runs.get(run_id) == before
        assert answer.attempt == 1

    def test_lost_is_not_for_jobs_to_say(self, services, run_id):
        with pytest.raises(InvalidInputError) as caught:
            beat(services, run_id, state="lost")
        assert caught.value.field == "state"


class TestLost:
    def test_after_three_silent_intervals(self, services, run_id, clock):
        clock.advance(30)
        assert services.runs.sweep_lost() == []
        clock.advance(1)
        assert services.runs.sweep_lost() == [run_id]
        assert services.runs.sweep_lost() == []
        assert services.runs.get(run_id).state == "lost"
        (alert,) = services.queries.alerts(run_id)
        assert (alert.rule, alert.state, alert.value) == ("no_sign_of_life", "firing", 31.0)
        last = services.queries.audit(run_id).entries[-1]
        assert (last.reason, last.after) == ("no_sign_of_life", {"state": "lost"})

    @pytest.mark.parametrize("before", ["running", "paused"])
    @pytest.mark.parametrize("word", ["frames", "poll", "catalogs"])
    def test_a_run_that_reports_again_returns_to_its_state(
        self, services, run_id, make, clock, before, word
    ):
        beat(services, run_id, state=before)
        clock.advance(60)
        services.runs.sweep_lost()
        words = {
            "frames": lambda: services.ingest.accept(run_id, make.batch(0, [1])),
            "poll": lambda: services.commands.poll(run_id, 1),
            "catalogs": lambda: services.runs.add_catalogs(
                run_id, CatalogsAdd(catalogs=(make.catalog,))
            ),
        }
        words[word]()
        assert services.runs.get(run_id).state == before
        assert services.queries.alerts(run_id)[0].state == "resolved"
        assert services.queries.audit(run_id).entries[-1].reason == "heard_again"

    def test_lost_twice_is_two_alerts(self, services, run_id, clock):
        for _ in range(2):
            clock.advance(60)
            services.runs.sweep_lost()
            services.commands.poll(run_id, 1)
        assert len(services.queries.alerts(run_id)) == 2

    def test_it_goes_by_the_jobs_own_promise(self, services, make, clock):
        slow = services.runs.register(make.register(name="slow", heartbeat_seconds=600)).run_id
        fast = services.runs.register(make.register(name="fast", heartbeat_seconds=1)).run_id
        clock.advance(10)
        assert services.runs.sweep_lost() == [fast]
        assert services.runs.get(slow).state == "running"

    def test_what_has_ended_cannot_be_lost(self, services, run_id, clock):
        beat(services, run_id, state="finished")
        clock.advance(10_000)
        assert services.runs.sweep_lost() == []

    def test_the_time_without_a_collector_does_not_count(self, open_services, make, clock):
        services = open_services()
        run_id = services.runs.register(make.register()).run_id
        services.close()
        clock.advance(3600)
        services = open_services()
        assert services.runs.sweep_lost() == []
        clock.advance(31)
        assert services.runs.sweep_lost() == [run_id]


class TestList:
    @pytest.fixture
    def names(self, services, make, clock):
        names = ["delta", "Alpha", "charlie", "bravo 100%", "echo"]
        for name in names:
            clock.advance(1)
            run_id = services.runs.register(make.register(name=name)).run_id
            beat(services, run_id, step=len(name))
        beat(services, run_id, step=4, state="finished")
        return names

    def pages(self, services, **given):
        names, cursor = [], None
        while True:
            page = services.runs.list(RunQuery(cursor=cursor, limit=2, **given))
            names += [run.name for run in page.runs]
            cursor = page.next_cursor
            if cursor is None:
                return names, page.total

    def test_newest_first(self, services, names):
        assert self.pages(services) == (names[::-1], 5)

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("sort", list(RunSort))
    def test_pages_show_every_run_once_in_order(self, services, names, sort, descending):
        found, _ = self.pages(services, sort=sort, descending=descending)
        assert sorted(found) == sorted(names)
        runs = services.runs.list(RunQuery(sort=sort, descending=descending)).runs
        assert [run.name for run in runs] == found
        values = [getattr(run, sort.value) for run in runs]
        assert values == sorted(values, reverse=descending)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"name": "ALPHA"}, ["Alpha"]),
            ({"name": "0%"}, ["bravo 100%"]),
            ({"name": "%"}, ["bravo 100%"]),
            ({"name": "nobody"}, []),
            ({"states": (RunState.FINISHED,)}, ["echo"]),
            ({"states": (RunState.LOST,)}, []),
        ],
    )
    def test_filters(self, services, names, given, expected):
        assert self.pages(services, **given) == (expected, len(expected))

    @pytest.mark.parametrize("cursor", ["nonsense", "e30=", "WzEsMiwzLDRd", "\u00e9"])
    def test_a_cursor_that_is_none_is_refused(self, services, names, cursor):
        with pytest.raises(InvalidInputError) as caught:
            services.runs.list(RunQuery(cursor=cursor))
        assert caught.value.field == "cursor"

    def test_a_cursor_of_another_order_is_refused(self, services, names):
        cursor = services.runs.list(RunQuery(limit=2)).next_cursor
        with pytest.raises(InvalidInputError, match="same sort and order"):
            services.runs.list(RunQuery(limit=2, cursor=cursor, sort=RunSort.NAME))


class TestDelete:
    def test_all_of_it_goes(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(0, range(1, 9), 50.0))
        beat(services, run_id, state="finished", step=9)
        services.runs.delete(run_id, ADA, "a test")
        with pytest.raises(NotFoundError):
            services.runs.get(run_id)
        with pytest.raises(NotFoundError):
            services.ingest.accept(run_id, make.batch(1, [10]))
        assert services.runs.register(make.register()).attempt == 1

    def test_one_that_lives_stays(self, services, run_id):
        with pytest.raises(ConflictError) as caught:
            services.runs.delete(run_id, ADA, "a mistake")
        assert caught.value.code == "run_active"
        assert services.runs.get(run_id).state == "running"


@pytest.mark.parametrize("run_id", ["nobody", "", "a\x00b", "x" * 500])
def test_what_is_not_there_is_not_found(services, run_id):
    calls = [
        lambda: services.runs.get(run_id),
        lambda: beat(services, run_id),
        lambda: services.commands.poll(run_id, 1),
        lambda: services.commands.get(run_id),
        lambda: services.queries.incidents(run_id),
        lambda: services.queries.incident(run_id),
        lambda: services.queries.alerts(run_id),
        lambda: services.queries.audit(run_id),
        lambda: services.queries.rules(run_id),
        lambda: services.runs.delete(run_id, ADA, "x"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()


class TestPhase:
    def test_a_run_shows_what_its_loss_does(self, services, run_id, make, open_services):
        assert services.runs.get(run_id).phase == "learning"
        steps = np.arange(1, 301)
        losses = 9.0 - np.log(steps)
        services.ingest.accept(run_id, make.batch(0, steps[:200], losses[:200]))
        assert services.runs.get(run_id).phase == "falling"
        services.close()
        again = open_services()
        rising = losses[199] + 0.05 * (steps[200:] - 200)
        again.ingest.accept(run_id, make.batch(1, steps[200:], rising))
        assert again.runs.list(RunQuery()).runs[0].phase == "diverging"
