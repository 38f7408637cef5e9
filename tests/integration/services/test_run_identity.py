"""Which run a registration becomes, and how attempts are numbered as they arrive."""

import threading
from dataclasses import replace

import pytest

from stabilizer.errors import ConflictError
from stabilizer.protocol.batches import AttemptStart, SnapshotInfo
from stabilizer.protocol.queries import CommandCreate, RollbackRequest
from stabilizer.protocol.runs import (
    Heartbeat,
    ResumedFrom,
    RunState,
    SchedulerJob,
    trace_lineage,
)


def new_id(number):
    return f"{number:032x}"


def register(services, make, number, **changes):
    return services.runs.register(make.register(attempt_id=new_id(number), **changes))


def batch(make, number, sequence, steps, *, origin=None, parent=None, **changes):
    """A batch as a job of protocol version 2 sends it."""
    made = make.batch(sequence, steps)
    start = AttemptStart(
        from_step=steps[0],
        origin_id=new_id(number if origin is None else origin),
        parent_id=None if parent is None else new_id(parent),
    )
    update = {"attempt": None, "attempt_id": new_id(number), "attempt_start": start} | changes
    return replace(made, header=made.header.model_copy(update=update))


class TestRunIdentity:
    def test_a_second_live_job_becomes_a_run_of_its_own_and_both_are_notified(self, services, make):
        first = register(services, make, 1)
        second = register(services, make, 2)
        assert second.run_id != first.run_id
        assert first.run_id in second.notice
        assert services.runs.get(second.run_id).key == "auto-2"
        beat = Heartbeat(attempt_id=new_id(1), step=0)
        assert second.run_id in services.runs.heartbeat(first.run_id, beat).notice
        assert services.runs.get(first.run_id).attempt == 1

    def test_the_name_alone_comes_back_once_no_job_of_it_is_live(self, services, make, clock):
        first = register(services, make, 1)
        clock.advance(3600)
        services.runs.sweep_lost()
        again = register(services, make, 2, start_step=5)
        assert (again.run_id, again.attempt, again.notice) == (first.run_id, 2, "")

    def test_an_explicit_key_comes_back_even_to_a_live_run(self, services, make):
        first = register(services, make, 1, key="k")
        assert register(services, make, 2, key="k").run_id == first.run_id

    def test_the_same_registration_twice_is_one_attempt(self, services, make):
        first = register(services, make, 1)
        assert register(services, make, 1) == first
        assert len(services.runs.get(first.run_id).attempts) == 1

    def test_a_checkpoint_comes_back_to_the_run_that_wrote_it(self, services, make, clock):
        first = register(services, make, 1)
        clock.advance(3600)
        register(services, make, 2, scheduler=SchedulerJob(id="slurm:9"), name="another")
        resumes = ResumedFrom(run_id=first.run_id, attempt_id=new_id(1))
        again = register(services, make, 3, start_step=3, resumes=resumes)
        assert (again.run_id, again.attempt) == (first.run_id, 2)
        assert services.runs.get(first.run_id).attempts[1].parent == 1

    def test_a_fork_from_a_live_jobs_checkpoint_is_a_run_of_its_own(self, services, make):
        first = register(services, make, 1)
        resumes = ResumedFrom(run_id=first.run_id, attempt_id=new_id(1))
        fork = register(services, make, 2, start_step=3, resumes=resumes)
        assert fork.run_id != first.run_id
        assert first.run_id in fork.notice
        beat = Heartbeat(attempt_id=new_id(1), step=0)
        assert fork.run_id in services.runs.heartbeat(first.run_id, beat).notice
        assert register(services, make, 2, start_step=3, resumes=resumes) == fork

    def test_a_checkpoint_within_one_allocation_comes_back_at_once(self, services, make):
        job = SchedulerJob(id="slurm:7")
        first = register(services, make, 1, scheduler=job)
        resumes = ResumedFrom(run_id=first.run_id, attempt_id=new_id(1))
        again = register(services, make, 2, scheduler=job, resumes=resumes)
        assert (again.run_id, again.attempt) == (first.run_id, 2)
        stale = register(services, make, 3, scheduler=job, resumes=resumes)
        assert stale.run_id != first.run_id  # the run has moved on since that checkpoint

    def test_a_requeued_job_comes_back_whatever_its_checkpoint(self, services, make):
        first = register(services, make, 1, scheduler=SchedulerJob(id="slurm:7"))
        for restarts in (1, 2):
            again = register(
                services,
                make,
                1 + restarts,
                scheduler=SchedulerJob(id="slurm:7", restarts=restarts),
                resumes=ResumedFrom(run_id=first.run_id, attempt_id=new_id(1)),
            )
            assert (again.run_id, again.attempt) == (first.run_id, 1 + restarts)

    def test_a_job_of_version_1_resumes_its_name_live_or_not(self, services, make):
        first = services.runs.register(make.register())
        assert services.runs.register(make.register()).run_id == first.run_id

    def test_a_requeued_job_comes_back_by_the_schedulers_id(self, services, make):
        job = SchedulerJob(id="slurm:7")
        first = register(services, make, 1, scheduler=job)
        other = register(services, make, 2, scheduler=SchedulerJob(id="slurm:8"))
        requeued = SchedulerJob(id="slurm:7", restarts=1)
        again = register(services, make, 3, scheduler=requeued)
        assert (again.run_id, again.attempt) == (first.run_id, 2)
        assert other.run_id != first.run_id

    def test_two_jobs_within_one_allocation_do_not_share_a_run(self, services, make):
        job = SchedulerJob(id="slurm:7")
        first = register(services, make, 1, scheduler=job)
        assert register(services, make, 2, scheduler=job).run_id != first.run_id

    def test_many_at_once_are_runs_of_their_own(self, open_services, make, backend):
        collectors = [open_services()]
        if backend == "postgresql":
            collectors.append(open_services())
        answers, barrier = [], threading.Barrier(4)

        def run(number):
            barrier.wait(10)
            answers.append(register(collectors[number % len(collectors)], make, number + 1))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len({answer.run_id for answer in answers}) == 4
        assert {answer.attempt for answer in answers} == {1}


class TestNumbersOnArrival:
    def test_a_late_spool_is_numbered_on_arrival_and_never_the_newest(self, services, make):
        resumes = ResumedFrom(attempt_id=new_id(1))  # its process never reached the collector
        run_id = register(services, make, 2, start_step=5, resumes=resumes).run_id
        late = services.ingest.accept(run_id, batch(make, 1, 0, range(1, 6)))
        assert (late.attempt, late.attempt_id, late.commands) == (2, new_id(1), ())
        run = services.runs.get(run_id)
        assert (run.attempt, run.step) == (1, 5)
        assert [(a.number, a.parent, a.late) for a in run.attempts] == [
            (1, 2, False),
            (2, None, True),
        ]
        live = {branch.attempt: branch.live_to for branch in trace_lineage(run.attempts)}
        assert live == {1: None, 2: 5}

    def test_messages_of_a_late_attempt_do_not_speak_for_the_run(self, services, make, clock):
        run_id = register(services, make, 2).run_id
        services.ingest.accept(run_id, batch(make, 1, 0, range(1, 6)))
        seen = services.runs.get(run_id).last_seen_at
        clock.advance(5)
        services.ingest.accept(run_id, batch(make, 1, 0, range(1, 6)))
        services.commands.poll(run_id, attempt_id=new_id(1))
        end = Heartbeat(attempt_id=new_id(1), step=6, state=RunState.FINISHED)
        services.runs.heartbeat(run_id, end)
        run = services.runs.get(run_id)
        assert (run.state, run.last_seen_at) == (RunState.RUNNING, seen)

    def test_a_number_never_names_an_attempt_that_a_job_has_minted(self, services, make):
        run_id = register(services, make, 1).run_id
        with pytest.raises(ConflictError) as caught:
            services.ingest.accept(run_id, make.batch(0, range(1, 4)))
        assert caught.value.code == "unknown_attempt"

    def test_a_rollback_of_the_live_process_is_the_newest(self, services, make):
        run_id = register(services, make, 1).run_id
        services.ingest.accept(run_id, batch(make, 1, 0, range(1, 9)))
        services.ingest.accept(run_id, batch(make, 7, 0, range(1, 3)))  # an orphaned spool
        answer = services.ingest.accept(run_id, batch(make, 2, 0, range(4, 6), origin=1, parent=1))
        run = services.runs.get(run_id)
        assert (answer.attempt, run.attempt, run.step) == (3, 3, 5)
        assert run.attempts[2].parent == 1

    def test_a_batch_again_changes_nothing(self, services, make):
        run_id = register(services, make, 1).run_id
        sent = batch(make, 1, 0, range(1, 4))
        assert not services.ingest.accept(run_id, sent).duplicate
        assert services.ingest.accept(run_id, sent).duplicate

    def test_an_unknown_attempt_without_its_start_is_refused(self, services, make):
        run_id = register(services, make, 1).run_id
        with pytest.raises(ConflictError) as caught:
            services.ingest.accept(run_id, batch(make, 2, 0, range(1, 4), attempt_start=None))
        assert caught.value.code == "unknown_attempt"

    def test_snapshots_get_the_number_of_their_attempt(self, services, make):
        run_id = register(services, make, 1).run_id
        info = SnapshotInfo(id="s", attempt=9, attempt_id=new_id(1), step=2, finite=True)
        services.ingest.accept(run_id, batch(make, 1, 0, range(1, 4), snapshots=(info,)))
        (held,) = services.queries.snapshots(run_id)
        assert (held.snapshot.id, held.snapshot.attempt) == ("s", 1)
        request = CommandCreate(parameters=RollbackRequest(snapshot_id="s"), reason="test")
        services.commands.create(run_id, request, actor="operator")
        (command,) = services.commands.poll(run_id, attempt_id=new_id(1)).commands
        assert command.attempt_id == command.parameters.target.attempt_id == new_id(1)

    def test_a_poll_names_the_attempt_by_its_id(self, services, make):
        run_id = register(services, make, 1).run_id
        services.ingest.accept(run_id, batch(make, 1, 0, range(1, 4)))
        answer = services.commands.poll(run_id, attempt_id=new_id(1))
        assert (answer.attempt, answer.attempt_id) == (1, new_id(1))
        assert services.commands.poll(run_id, attempt_id=new_id(5)).commands == ()
