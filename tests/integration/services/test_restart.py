"""A collector that comes and goes decides as one that never went."""

import numpy as np
import pytest
from sqlalchemy import text, update

from stabilizer.collector.storage.models import BrainStateRow, CommandRow
from stabilizer.collector.storage.repositories.frames import FrameRepository
from stabilizer.errors import StorageError
from stabilizer.protocol.batches import Marker
from stabilizer.protocol.commands import CommandResult, ReadBack, RollbackParameters
from stabilizer.protocol.queries import ControlUpdate, SilenceCreate

NUM_BATCHES = 34
STEPS = 5


def losses_of(steps, attempt):
    """A calm start, a jump that heals, NaN, and in the first attempt a divergence that stays."""
    losses = 3 + np.sin(steps * 1.7) * 0.1
    losses[(steps >= 40) & (steps < 44)] = 50.0
    losses[steps == 60] = np.nan
    if attempt == 1:
        losses[steps > 100] = 40.0
    return losses


class Training:
    """A job that obeys: it carries each command out and reports it before the next batch."""

    def __init__(self, make):
        self.make = make
        self.attempt, self.sequence, self.step = 1, 0, 0
        self.header, self.pending = {}, []

    def send(self, services, run_id):
        for command in self.pending:
            self.obey(services, run_id, command)
        steps = np.arange(self.step + 1, self.step + STEPS + 1)
        values = np.stack([losses_of(steps, self.attempt), 1 + np.cos(steps)], axis=1)
        held = [self.make.snapshot(step) for step in range(0, min(self.step, 100) + 1, 20)]
        header = self.header | ({"snapshots": tuple(held)} if self.sequence % 4 == 0 else {})
        if (self.attempt, self.sequence) == (1, 10):
            header["markers"] = (Marker(kind="lr_change", step=self.step + 3),)
        batch = self.make.batch(
            self.sequence,
            blocks=[self.make.block(steps, values=values)],
            attempt=self.attempt,
            **header,
        )
        answer = services.ingest.accept(run_id, batch)
        self.step, self.sequence, self.header = int(steps[-1]), self.sequence + 1, {}
        self.pending = list(answer.commands)
        return answer

    def obey(self, services, run_id, command):
        if isinstance(command.parameters, RollbackParameters):
            self.step = command.parameters.target.step
            self.attempt, self.sequence = self.attempt + 1, 0
            start = self.make.rollback_start(self.step, parent=self.attempt - 1)
            self.header = {"attempt_start": start}
        read_back = ReadBack(attempt=self.attempt, step=self.step, lr={"0": float("nan")})
        result = CommandResult(command_id=command.id, state="applied", read_back=read_back)
        services.commands.result(run_id, result)
        services.commands.result(run_id, result)


def decided(services, run_id):
    """Everything that was decided, without ids, which are random."""
    alerts = [
        alert.model_dump(mode="json", exclude={"id", "incident_id", "run_id"})
        for alert in services.queries.alerts(run_id)
    ]
    incidents = [
        incident.model_dump(
            mode="json",
            exclude={"id": True, "run_id": True, "decisions": {"__all__": {"command_id"}}},
        )
        for incident in services.queries.incidents(run_id)
    ]
    commands = [
        command.model_dump(mode="json", exclude={"id", "run_id", "incident_id", "result"})
        for command in services.commands.list(run_id)
    ]
    return repr((alerts, incidents, commands))


@pytest.fixture
def unbroken(open_services, make):
    """What a collector decides that is never disturbed, with the answers it gives."""
    services = open_services()
    run_id = services.runs.register(make.register(name="unbroken")).run_id
    training = Training(make)
    answers = [training.send(services, run_id) for _ in range(NUM_BATCHES)]
    result = decided(services, run_id)
    services.close()
    return result, [strip(answer) for answer in answers]


def strip(answer):
    return answer.model_dump(
        mode="json", exclude={"commands": {"__all__": {"id", "run_id", "incident_id"}}}
    )


def test_the_story_has_something_to_tell(unbroken):
    told, _ = unbroken
    assert all(word in told for word in ("reduce_lr", "rollback", "relapse", "intervention_helped"))


@pytest.mark.parametrize("every", [3, 10])
def test_a_restart_changes_nothing(open_services, make, unbroken, every):
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    training, answers = Training(make), []
    for sequence in range(NUM_BATCHES):
        if sequence % every == 0:
            services.close()
            services = open_services()
        answers.append(strip(training.send(services, run_id)))
    assert (decided(services, run_id), answers) == unbroken


def test_a_commit_that_fails_changes_nothing(open_services, make, unbroken, monkeypatch):
    """The rules have moved on in memory, and the database has not."""
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    training, answers = Training(make), []
    for sequence in range(NUM_BATCHES):
        if sequence % 3 == 2:
            with monkeypatch.context() as patch:
                patch.setattr(FrameRepository, "add_batch", fail)
                with pytest.raises(StorageError):
                    training.send(services, run_id)
            training.pending = []  # these are carried out; the batch is sent again
        answers.append(strip(training.send(services, run_id)))
    assert (decided(services, run_id), answers) == unbroken


def fail(*_arguments):
    raise StorageError("the disk is full")


@pytest.mark.parametrize("backend", ["postgresql"])  # a SQLite file takes one collector
def test_another_collector_on_the_same_database_is_noticed(open_services, make, unbroken):
    """Behind a load balancer that sends one run now here, now there."""
    collectors = [open_services(), open_services()]
    run_id = collectors[0].runs.register(make.register()).run_id
    training = Training(make)
    answers = [
        strip(training.send(collectors[sequence % 2], run_id)) for sequence in range(NUM_BATCHES)
    ]
    assert (decided(collectors[1], run_id), answers) == unbroken


def test_what_operators_set_holds_in_a_replay(open_services, make):
    """A disarm and a silence that come between two saved states."""
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    services.ingest.accept(run_id, make.batch(0, range(1, 6)))
    silence = SilenceCreate(rule="loss_high", run_id=run_id, until_step=8, reason="known")
    services.control.add_silence(silence, "person:ada")
    services.control.update(ControlUpdate(disarmed=True, reason="night"), "person:ada")
    services.ingest.accept(run_id, make.batch(1, range(6, 11), 50.0))
    services.close()
    services = open_services()
    services.ingest.accept(run_id, make.batch(2, range(11, 16), 50.0))
    assert services.commands.list(run_id) == []
    reasons = [d.reason for d in services.queries.incidents(run_id)[0].decisions]
    assert "disarmed" in reasons


class TestSavedState:
    def spoil(self, services, **values):
        with services.database.transaction() as session:
            session.execute(update(BrainStateRow).values(**values))
        services.close()

    def test_one_that_cannot_be_read_begins_anew_and_says_so(self, open_services, make):
        services = open_services()
        run_id = services.runs.register(make.register()).run_id
        services.ingest.accept(run_id, make.batch(0, range(1, 9), 50.0))
        (before,) = services.queries.incidents(run_id)
        self.spoil(services, state=b"nonsense")
        services = open_services()
        services.ingest.accept(run_id, make.batch(1, range(9, 20), 50.0))
        newest, oldest = services.queries.incidents(run_id)
        assert (oldest.id, oldest.state) == (before.id, "resolved")
        assert (newest.number, newest.state) != (1, "resolved")
        actions = [entry.action for entry in services.queries.audit(run_id).entries]
        assert "run_rules_changed" in actions

    def test_rules_that_cannot_be_read_any_more_give_way_to_the_default(self, open_services, make):
        services = open_services()
        run_id = services.runs.register(make.register()).run_id
        with services.database.transaction() as session:
            session.execute(text("UPDATE rule_sets SET text = 'rules: nonsense'"))
        services.close()
        services = open_services()
        services.ingest.accept(run_id, make.batch(0, range(1, 9)))
        names = [rule.name for rule in services.queries.rules(run_id).health]
        assert "loss_high" not in names

    def test_a_command_of_the_policy_is_issued_once_whatever_happens(self, open_services, make):
        services = open_services()
        run_id = services.runs.register(make.register()).run_id
        for sequence in range(4):
            first = 3 * sequence + 1
            batch = make.batch(sequence, range(first, first + 3), 50.0)
            services.ingest.accept(run_id, batch)
            services.close()
            services = open_services()
            services.ingest.accept(run_id, batch)
        with services.database.reading() as session:
            assert session.query(CommandRow).count() == 1
