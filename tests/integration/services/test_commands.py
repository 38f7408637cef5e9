import pytest

from stabilizer.errors import ConflictError, NotFoundError
from stabilizer.protocol.commands import CommandResult, ReadBack
from stabilizer.protocol.decisions import AlertState
from stabilizer.protocol.queries import CommandCreate, ControlUpdate, Note, SeriesQuery
from stabilizer.protocol.runs import Heartbeat, RunUpdate

NOTE = Note(reason="looked at the curves")
ADA = "person:ada"


def asked(kind="pause", **changes):
    parameters = {"kind": kind} | changes.pop("parameters", {})
    return CommandCreate.model_validate({"parameters": parameters, "reason": "by hand"} | changes)


def told(command, state="applied", **changes):
    return CommandResult(command_id=command.id, state=state, **changes)


@pytest.fixture(params=["sqlite"])
def backend(request):
    """What differs between the databases is tested with ingest, restarts and storage."""
    return request.param


@pytest.fixture
def diverge(services, run_id, make):
    """Let the policy decide on a diverging loss, in a mode."""

    def run(mode, sequence=0):
        services.runs.update(run_id, RunUpdate(mode=mode, reason="test"), ADA)
        first = 3 * sequence + 1
        services.ingest.accept(run_id, make.batch(sequence, range(first, first + 3), 50.0))
        return services.commands.list(run_id)

    return run


@pytest.fixture
def history(services, run_id):
    """The states a command went through, as the audit log tells them."""

    def read(command):
        return [
            (entry.after["state"], str(entry.reason), entry.actor)
            for entry in services.queries.audit(run_id).entries
            if entry.subject == command.id
        ]

    return read


class TestByHand:
    def test_its_whole_life_is_on_record(self, services, run_id, history, clock):
        command = services.commands.create(run_id, asked(), ADA)
        assert (command.state, command.reason, command.actor) == ("pending", "manual", ADA)
        (delivered,) = services.commands.poll(run_id, 1).commands
        assert (delivered.id, delivered.state) == (command.id, "delivered")
        clock.advance(1)
        read_back = ReadBack(attempt=1, step=0, lr={"0": float("nan")}, lr_scale=1)
        applied = services.commands.result(run_id, told(command, read_back=read_back))
        assert (applied.state, applied.settled_at) == ("applied", clock.now())
        assert (applied.reason, applied.message) == ("manual", "by hand")
        assert services.commands.poll(run_id, 1).commands == ()
        assert history(command) == [
            ("pending", "manual", ADA),
            ("delivered", "sent_to_job", "collector"),
            ("applied", "carried_out", "job"),
        ]

    def test_it_is_in_every_answer_until_it_is_settled(self, services, run_id, make):
        command = services.commands.create(run_id, asked(), ADA)
        answers = [
            services.ingest.accept(run_id, make.batch(0, [1])),
            services.ingest.accept(run_id, make.batch(0, [1])),
            services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=1)),
            services.commands.poll(run_id, 1),
        ]
        assert [[c.id for c in answer.commands] for answer in answers] == [[command.id]] * 4

    def test_oldest_first(self, services, run_id):
        ids = [services.commands.create(run_id, asked(), ADA).id for _ in range(5)]
        assert [command.id for command in services.commands.poll(run_id, 1).commands] == ids

    def test_for_a_past_attempt_it_is_refused(self, services, run_id, make):
        services.runs.register(make.register())
        with pytest.raises(ConflictError) as caught:
            services.commands.create(run_id, asked(attempt=1), ADA)
        assert caught.value.code == "past_attempt"

    def test_for_a_run_that_has_ended_it_is_refused(self, services, run_id):
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=0, state="failed"))
        with pytest.raises(ConflictError) as caught:
            services.commands.create(run_id, asked(), ADA)
        assert caught.value.code == "run_ended"


class TestRollbackByHand:
    @pytest.fixture(autouse=True)
    def held(self, services, run_id, make):
        snapshots = [make.snapshot(step) for step in (0, 10, 20, 28)]
        snapshots.append(make.snapshot(25, id="broken", finite=False))
        services.ingest.accept(run_id, make.batch(0, range(1, 31), snapshots=tuple(snapshots)))

    def create(self, services, run_id, **parameters):
        command = asked("rollback", parameters=parameters)
        return services.commands.create(run_id, command, ADA).parameters

    @pytest.mark.parametrize(
        ("parameters", "step"),
        [
            ({"snapshot_id": "s10"}, 10),
            ({"snapshot_id": "s28"}, 28),  # not healthy yet, but a person says so
            ({"to_step": 19}, 10),
            ({"to_step": 20}, 20),
            ({}, 20),
        ],
    )
    def test_its_target_is_named_in_full(self, services, run_id, parameters, step):
        cut = {"kind": "reduce_lr", "factor": 0.5}
        given = self.create(services, run_id, skip_steps=7, reduce_lr=cut, **parameters)
        target = given.target
        assert (target.snapshot_id, target.attempt, target.step) == (f"s{step}", 1, step)
        assert (given.skip_steps, given.reduce_lr.factor) == (7, 0.5)

    @pytest.mark.parametrize(
        ("parameters", "code"),
        [
            ({"snapshot_id": "nowhere"}, "unknown_snapshot"),
            ({"snapshot_id": "broken"}, "snapshot_not_finite"),
        ],
    )
    def test_a_target_that_cannot_be_is_refused(self, services, run_id, parameters, code):
        with pytest.raises(ConflictError) as caught:
            self.create(services, run_id, **parameters)
        assert caught.value.code == code
        assert services.commands.list(run_id) == []

    def test_a_new_process_holds_none_of_the_old_ones_snapshots(self, services, run_id, make):
        services.runs.register(make.register(start_step=20))
        with pytest.raises(ConflictError) as caught:
            self.create(services, run_id, to_step=20)
        assert caught.value.code == "no_healthy_snapshot"


class TestOfThePolicy:
    def test_in_mode_auto_it_is_in_the_answer_to_the_batch(self, services, run_id, make):
        batch = make.batch(0, range(1, 4), 50.0)
        (command,) = services.ingest.accept(run_id, batch).commands
        (incident,) = services.queries.incidents(run_id)
        assert (command.actor, command.incident_id) == ("policy", incident.id)
        assert incident.decisions[-1].command_id == command.id
        (alert,) = services.queries.alerts(run_id, AlertState.FIRING)
        assert alert.incident_id == incident.id

    def test_in_mode_propose_an_operator_decides(self, services, run_id, diverge, history):
        (command,) = diverge("propose")
        assert command.state == "proposed"
        assert services.commands.poll(run_id, 1).commands == ()
        approved = services.commands.approve(command.id, NOTE, ADA)
        assert approved.state == "pending"
        assert [c.id for c in services.commands.poll(run_id, 1).commands] == [command.id]
        assert history(command)[1] == ("pending", "approved_by_person", ADA)

    def test_its_time_begins_with_the_approval(self, services, diverge, clock):
        (command,) = diverge("propose")
        clock.advance(500)
        approved = services.commands.approve(command.id, NOTE, ADA)
        assert (approved.expires_at - clock.now()).total_seconds() == 600

    def test_rejected_it_is_never_sent(self, services, run_id, diverge, history):
        (command,) = diverge("propose")
        rejected = services.commands.reject(command.id, NOTE, ADA)
        assert (rejected.state, rejected.reason) == ("rejected", "refused_by_person")
        assert rejected.message == NOTE.reason
        assert services.commands.poll(run_id, 1).commands == ()
        assert history(command)[-1] == ("rejected", "refused_by_person", ADA)

    def test_in_mode_observe_there_is_none(self, diverge):
        assert diverge("observe") == []

    def test_an_intervention_that_helped_is_marked(self, services, run_id, make):
        batch = make.batch(0, range(1, 4), 50.0)
        (command,) = services.ingest.accept(run_id, batch).commands
        read_back = ReadBack(attempt=1, step=3, lr_scale=0.5)
        services.commands.result(run_id, told(command, applied_step=3, read_back=read_back))
        services.ingest.accept(run_id, make.batch(1, range(4, 40)))
        (incident,) = services.queries.incidents(run_id)
        assert (incident.state, incident.helped) == ("resolved", True)
        assert incident.resolved_step is not None


class TestTooLate:
    @pytest.mark.parametrize("verb", ["approve", "reject"])
    def test_what_was_not_proposed_cannot_be_judged(self, services, run_id, verb):
        command = services.commands.create(run_id, asked(), ADA)
        with pytest.raises(ConflictError) as caught:
            getattr(services.commands, verb)(command.id, NOTE, ADA)
        assert caught.value.code == "command_settled"

    @pytest.mark.parametrize("verb", ["approve", "reject"])
    def test_what_the_job_has_or_had_cannot_be_judged(self, services, run_id, clock, verb):
        command = services.commands.create(run_id, asked(), ADA)
        services.commands.poll(run_id, 1)
        for state in ("delivered", "expired"):
            with pytest.raises(ConflictError, match=f"is {state}; only a proposed one"):
                getattr(services.commands, verb)(command.id, NOTE, ADA)
            assert services.commands.get(command.id).state == state
            clock.advance(7 * 86400)
            services.commands.expire_due()

    def test_what_the_job_has_cannot_be_cancelled(self, services, run_id):
        command = services.commands.create(run_id, asked(), ADA)
        services.commands.poll(run_id, 1)
        with pytest.raises(ConflictError) as caught:
            services.commands.cancel(command.id, NOTE, ADA)
        assert caught.value.code == "command_settled"
        assert services.commands.get(command.id).state == "delivered"

    def test_what_is_pending_can_be_cancelled_once(self, services, run_id):
        command = services.commands.create(run_id, asked(), ADA)
        assert services.commands.cancel(command.id, NOTE, ADA).state == "cancelled"
        with pytest.raises(ConflictError):
            services.commands.cancel(command.id, NOTE, ADA)
        assert services.commands.poll(run_id, 1).commands == ()

    def test_a_proposal_whose_time_has_passed(self, services, diverge, clock):
        (command,) = diverge("propose")
        clock.advance(600)
        with pytest.raises(ConflictError):
            services.commands.approve(command.id, NOTE, ADA)

    def test_a_new_attempt_withdraws_what_no_job_has(self, services, run_id, make, history):
        command = services.commands.create(run_id, asked(), ADA)
        services.runs.register(make.register())
        assert services.commands.get(command.id).state == "cancelled"
        assert history(command)[-1][1] == "past_attempt"

    def test_the_end_of_a_run_withdraws_it_too(self, services, run_id, history):
        command = services.commands.create(run_id, asked(), ADA)
        answer = services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=0, state="finished"))
        assert answer.commands == ()
        assert history(command)[-1][1] == "run_ending"


class TestResults:
    @pytest.fixture
    def command(self, services, run_id):
        services.commands.create(run_id, asked(), ADA)
        return services.commands.poll(run_id, 1).commands[0]

    def test_twice_is_once(self, services, run_id, command, history):
        result = told(command, read_back=ReadBack(attempt=1, step=3, lr={"0": float("nan")}))
        first = services.commands.result(run_id, result)
        again = services.commands.result(run_id, result)
        assert again.model_dump_json() == first.model_dump_json()
        assert len(history(command)) == 3

    def test_another_word_later_is_a_conflict(self, services, run_id, command):
        services.commands.result(run_id, told(command))
        with pytest.raises(ConflictError) as caught:
            services.commands.result(run_id, told(command, "failed"))
        assert caught.value.code == "command_settled"
        assert services.commands.get(command.id).state == "applied"

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            ("rejected", "past_attempt"),
            ("failed", "restore_failed"),
            ("failed", None),
            ("expired", "expired"),
        ],
    )
    def test_a_refusal_says_why(self, services, run_id, command, history, state, reason):
        result = told(command, state, reason=reason, message="no")
        settled = services.commands.result(run_id, result)
        assert (settled.state, settled.message) == (state, "no")
        assert history(command)[-1] == (state, reason or "failed_in_job", "job")

    def test_of_a_command_that_was_never_sent_it_is_refused(self, services, run_id):
        command = services.commands.create(run_id, asked(), ADA)
        with pytest.raises(ConflictError):
            services.commands.result(run_id, told(command))
        assert services.commands.get(command.id).result is None

    def test_of_another_runs_command_it_is_not_found(self, services, run_id, command, make):
        other = services.runs.register(make.register(name="other")).run_id
        with pytest.raises(NotFoundError) as caught:
            services.commands.result(other, told(command))
        assert caught.value.code == "unknown_command"


class TestTwoProcesses:
    def test_one_that_lives_on_gets_no_commands_of_its_successor(self, services, run_id, make):
        successor = services.runs.register(make.register()).attempt
        command = services.commands.create(run_id, asked(), ADA)
        assert services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=0)).commands == ()
        assert services.commands.poll(run_id, 1).commands == ()
        assert services.commands.get(command.id).state == "pending"
        (delivered,) = services.commands.poll(run_id, successor).commands
        assert delivered.id == command.id


class TestExpiry:
    @pytest.fixture
    def command(self, services, run_id):
        return services.commands.create(run_id, asked(ttl_seconds=30), ADA)

    def test_by_the_sweep(self, services, command, clock, history):
        clock.advance(29)
        assert services.commands.expire_due() == 0
        clock.advance(1)
        assert services.commands.expire_due() == 1
        assert services.commands.expire_due() == 0
        expired = services.commands.get(command.id)
        assert (expired.state, expired.reason) == ("expired", "expired")
        assert history(command)[-1] == ("expired", "expired", "collector")

    def test_by_the_jobs_next_word(self, services, run_id, command, clock):
        clock.advance(31)
        assert services.commands.poll(run_id, 1).commands == ()
        assert services.commands.get(command.id).state == "expired"

    def test_what_the_job_did_nevertheless_is_applied(
        self, services, run_id, command, clock, history
    ):
        services.commands.poll(run_id, 1)
        clock.advance(31)
        services.commands.expire_due()
        applied = services.commands.result(run_id, told(command))
        assert (applied.state, applied.reason, applied.message) == ("applied", "manual", "by hand")
        assert history(command)[-1] == ("applied", "carried_out_late", "job")

    def test_expired_on_both_sides_is_expired_once(self, services, run_id, command, clock):
        services.commands.poll(run_id, 1)
        clock.advance(31)
        services.commands.expire_due()
        result = told(command, "expired", reason="expired")
        first = services.commands.result(run_id, result)
        assert services.commands.result(run_id, result) == first
        assert (first.state, first.result) == ("expired", result)


class TestDisarm:
    def disarm(self, services, disarmed):
        return services.control.update(ControlUpdate(disarmed=disarmed, reason="night"), ADA)

    def test_the_policy_holds_back_and_operators_do_not(self, services, run_id, diverge):
        self.disarm(services, True)
        assert diverge("auto") == []
        decisions = services.queries.incidents(run_id)[0].decisions
        assert [(d.kind, d.reason) for d in decisions][-1] == ("hold", "disarmed")
        services.commands.create(run_id, asked(), ADA)
        assert len(services.commands.poll(run_id, 1).commands) == 1

    def test_what_no_job_has_is_taken_back(self, services, run_id, diverge, history):
        (of_policy,) = diverge("propose")
        services.commands.approve(of_policy.id, NOTE, ADA)
        by_hand = services.commands.create(run_id, asked(), ADA)
        self.disarm(services, True)
        assert services.commands.get(of_policy.id).state == "cancelled"
        assert history(of_policy)[-1] == ("cancelled", "disarmed", ADA)
        assert services.commands.get(by_hand.id).state == "pending"

    def test_what_the_job_has_stays(self, services, run_id, diverge):
        (command,) = diverge("auto")
        assert command.state == "delivered"
        self.disarm(services, True)
        assert services.commands.get(command.id).state == "delivered"

    def test_armed_again_it_acts(self, services, run_id, diverge):
        self.disarm(services, True)
        diverge("auto")
        state = self.disarm(services, False)
        assert (state.disarmed, state.reason, state.actor) == (False, "night", ADA)
        assert len(diverge("auto", sequence=1)) == 1
        actions = [entry.action for entry in services.queries.audit().entries]
        assert [a for a in actions if "armed" in a] == ["disarmed", "armed"]


def test_a_command_is_on_record_before_it_leaves(services, run_id, make, monkeypatch):
    """The transaction that marks it as sent fails: it was not sent, and will be."""
    services.commands.create(run_id, asked(), ADA)
    fail = pytest.raises(RuntimeError, match="lost power")

    def lose_power(*_arguments, **_options):
        raise RuntimeError("lost power")

    with monkeypatch.context() as patch, fail:
        patch.setattr("stabilizer.collector.services.commands.service.build_answer", lose_power)
        services.commands.poll(run_id, 1)
    assert services.commands.list(run_id)[0].state == "pending"
    (delivered,) = services.ingest.accept(run_id, make.batch(0, [1])).commands
    assert services.commands.get(delivered.id) == delivered
    assert services.queries.read(run_id, SeriesQuery(series=("loss",)))[0].steps == (1,)
