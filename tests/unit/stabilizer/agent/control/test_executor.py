from __future__ import annotations

import pytest

from stabilizer.agent.control.agreement import RankStatus
from stabilizer.errors import RestoreError
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    ResumeParameters,
    StopParameters,
)


def words(control):
    return [(r.state.value, r.reason and r.reason.value) for r in control.results]


@pytest.fixture
def snapshot(control, make):
    taken = make.snapshot(20, 1)
    control.ring.add(taken)
    control.ring.add(make.snapshot(30, 2))
    return taken


def test_nothing_happens_without_commands(control):
    assert control.executor.boundary() is False
    assert control.results == []


def test_a_rollback_restores_starts_an_attempt_and_reads_back(control, make, snapshot):
    command = make.command(make.rollback(snapshot, skip_steps=3))
    control.inbox.offer([command])
    assert control.executor.boundary() is True
    assert control.training.restored == [("step20-1", 3)]
    (start,) = control.events.starts
    assert (start.from_step, start.parent_id, start.command_id, start.skipped_samples) == (
        20, command.attempt_id, command.id, 30,
    )  # fmt: skip
    (result,) = control.results
    assert (result.state, result.applied_step) == ("applied", 30)
    back = result.read_back
    assert (back.attempt, back.step, back.samples, back.skipped_samples) == (2, 20, 230, 30)
    assert back.attempt_id == control.events.attempt_id
    assert (back.lr, back.lr_scale) == ({"0": 0.1}, 1.0)
    assert [info.id for info in control.ring.inventory()] == ["step20-1"]
    assert control.executor.boundary() is False


def test_a_rollback_with_a_cut_is_read_back_from_the_next_step(control, make, snapshot):
    cut = ReduceLrParameters(factor=0.5)
    control.inbox.offer([make.command(make.rollback(snapshot, reduce_lr=cut))])
    control.executor.boundary()
    assert control.results == []
    control.step()
    (result,) = control.results
    assert (result.state, result.read_back.lr, result.read_back.lr_scale) == (
        "applied", {"0": 0.05}, 0.5,
    )  # fmt: skip
    assert control.events.markers[0].text == "lr_scale 0.5"


def test_a_cut_in_effect_is_applied_again_after_a_rollback(control, make, snapshot):
    control.override.cut(ReduceLrParameters(factor=0.5))
    control.inbox.offer([make.command(make.rollback(snapshot))])
    control.executor.boundary()
    control.step()
    assert control.results[0].read_back.lr == {"0": 0.05}


def test_a_rollback_settles_the_cut_before_it(control, make, snapshot):
    control.inbox.offer([make.command(ReduceLrParameters(factor=0.5))])
    control.executor.boundary()
    control.inbox.offer([make.command(make.rollback(snapshot))])
    control.executor.boundary()
    control.step()
    assert words(control) == [("applied", None)] * 2
    assert "no optimizer step has run" in control.results[0].message


@pytest.mark.parametrize(
    ("prepare", "options", "reason"),
    [
        (lambda c: None, {"attempt": 2}, RejectReason.PAST_ATTEMPT),
        (lambda c: setattr(c.training, "is_ending", True), {}, RejectReason.RUN_ENDING),
        (lambda c: setattr(c.training, "unsupported", "no"), {}, RejectReason.UNSUPPORTED),
        (
            lambda c: setattr(c.training, "refusal", RejectReason.UNSUPPORTED),
            {},
            RejectReason.UNSUPPORTED,
        ),
        (lambda c: c.ring.clear(), {}, RejectReason.UNKNOWN_SNAPSHOT),
        (
            lambda c: c.ring.mark_not_finite("step20-1"),
            {},
            RejectReason.SNAPSHOT_NOT_FINITE,
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_touched(
    control, make, snapshot, prepare, options, reason
):
    prepare(control)
    control.inbox.offer([make.command(make.rollback(snapshot), **options)])
    assert control.executor.boundary() is False
    assert words(control) == [("rejected", reason.value)]
    assert control.training.restored == []
    assert control.events.starts == []


def test_a_refusal_of_another_rank_counts(control, make, snapshot):
    control.agreement.vote = lambda refusal: refusal or RejectReason.UNKNOWN_SNAPSHOT
    control.inbox.offer([make.command(make.rollback(snapshot))])
    control.executor.boundary()
    assert words(control) == [("rejected", "unknown_snapshot")]
    assert control.results[0].message == "rejected by another rank"


def test_a_failed_restore_is_reported_and_raised(control, make, snapshot):
    control.training.failure = "it broke"
    control.inbox.offer([make.command(make.rollback(snapshot))])
    with pytest.raises(RestoreError, match="it broke"):
        control.executor.boundary()
    assert words(control) == [("failed", "restore_failed")]
    assert control.results[0].message == "it broke"


def test_a_restore_to_another_position_stops_the_job(control, make, snapshot):
    control.training.drift = 1
    control.inbox.offer([make.command(make.rollback(snapshot))])
    with pytest.raises(RestoreError, match=r"\(21, 200\).*\(20, 200\)"):
        control.executor.boundary()
    assert words(control) == [("failed", "restore_failed")]


def test_a_rate_that_the_step_overrides_is_a_mismatch(control, make):
    control.inbox.offer([make.command(ReduceLrParameters(factor=0.5))])
    control.executor.boundary()
    control.optimizer.step(lambda: control.optimizer.param_groups[0].update(lr=0.1))
    control.executor.after_step()
    assert words(control) == [("failed", "read_back_mismatch")]


def test_a_cut_waits_for_a_step_but_not_for_ever(control, make):
    control.inbox.offer([make.command(ReduceLrParameters(factor=0.5))])
    control.executor.boundary()
    for _ in range(50):
        control.executor.after_step()  # a gradient scaler skips every step
    assert control.results == []
    control.executor.after_step()
    assert words(control) == [("failed", "read_back_mismatch")]


def test_pause_polls_until_resume(control, make):
    resume = make.command(ResumeParameters())
    control.events.on_paused = lambda: control.inbox.offer([resume])
    control.inbox.offer([make.command(ReduceLrParameters(factor=0.5)), make.command()])
    control.executor.boundary()
    assert words(control) == [("applied", None)] * 3
    assert control.events.pauses == [(True, 30), (False, 30)]
    assert not control.executor.is_paused


def test_pause_twice_is_one_pause(control, make):
    stop = make.command(StopParameters())
    control.inbox.offer([make.command(), make.command(PauseParameters()), stop])
    control.executor.boundary()
    assert words(control) == [("applied", None)] * 3
    assert control.training.stopped


def test_resume_without_pause_is_refused(control, make):
    control.inbox.offer([make.command(ResumeParameters())])
    control.executor.boundary()
    assert words(control) == [("rejected", "not_paused")]


def test_nothing_is_carried_out_after_stop(control, make, snapshot):
    control.inbox.offer([make.command(StopParameters()), make.command(make.rollback(snapshot))])
    control.executor.boundary()
    assert words(control) == [("applied", None), ("rejected", "run_ending")]
    assert control.executor.is_stopping


def test_a_checkpoint_is_named_in_the_read_back(control, make):
    command = make.command(CheckpointNowParameters())
    control.inbox.offer([command])
    control.executor.boundary()
    assert control.results[0].read_back.checkpoint_path == f"/checkpoints/{command.id}"


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("writer broke")])
def test_a_failed_checkpoint_is_reported_and_training_continues(control, make, error):
    control.training.checkpoint_failure = error
    control.inbox.offer([make.command(CheckpointNowParameters())])
    assert control.executor.boundary() is False
    assert words(control) == [("failed", None)]
    assert control.results[0].message == str(error)


def test_the_end_settles_everything(control, make, snapshot):
    control.inbox.offer([make.command(ReduceLrParameters(factor=0.5))])
    control.executor.boundary()
    on_its_way, unread = make.command(), make.command()
    control.agreement.close = lambda: (on_its_way,)
    control.inbox.offer([unread])
    control.executor.finish()
    assert words(control) == [
        ("applied", None), ("rejected", "run_ending"), ("rejected", "run_ending"),
    ]  # fmt: skip


def test_a_snapshot_that_any_rank_finds_spoiled_is_spoiled_for_all(control, make, snapshot):
    newest = make.snapshot(30, 2)
    control.executor.note_snapshot(newest)
    control.executor.boundary()  # reports it; the next boundary gets the answer
    exchange = control.agreement.exchange

    def spoiled(offered, status):
        agreed = exchange(offered, status)
        control.agreement.merged = RankStatus(spoiled=True, healthy=0)
        return agreed

    control.agreement.exchange = spoiled
    control.executor.boundary()
    assert [info.finite for info in control.ring.inventory()] == [True, False]


def test_the_healthy_snapshot_is_agreed_on_and_protected(control, make, snapshot):
    control.ring.healthy = ("step20-1",)
    control.executor.boundary()
    for number in range(3, 9):
        control.ring.add(make.snapshot(number * 10, number))
    assert control.ring.inventory()[0].id == "step20-1"


def test_followers_do_not_offer_and_find_the_snapshot_by_the_same_ids(control, make, snapshot):
    control.agreement.is_leader = False
    sent = make.command(make.rollback(snapshot))
    control.inbox.offer([make.command()])
    control.agreement.exchange = lambda offered, status: (sent,) if not offered else ()
    control.executor.boundary()
    assert control.training.restored == [("step20-1", 0)]


def test_a_command_for_a_job_that_only_counts_its_attempts_is_past(control, make, snapshot):
    command = make.command(make.rollback(snapshot)).model_copy(update={"attempt_id": None})
    control.inbox.offer([command])
    control.executor.boundary()
    assert words(control) == [("rejected", "past_attempt")]


def test_the_end_of_the_job_ends_a_pause(control, make):
    control.events.on_paused = lambda: setattr(control.training, "is_ending", True)
    control.inbox.offer([make.command()])
    control.executor.boundary()
    assert not control.executor.is_paused
    assert control.events.pauses == [(True, 30), (False, 30)]


def test_a_collector_that_was_replaced_is_refused(control, make):
    cut = ReduceLrParameters(factor=0.5)
    for fence in (2, 1, 2):
        control.inbox.offer([make.command(cut).model_copy(update={"fence": fence})])
        control.executor.boundary()
        control.step()
    assert words(control) == [
        ("applied", None),
        ("rejected", "stale_fence"),
        ("applied", None),
    ]


@pytest.mark.parametrize(
    ("options", "is_allowed"),
    [
        ({"skip_steps": 500}, True),
        ({"skip_steps": 501}, False),
        ({"reduce_lr": ReduceLrParameters(factor=0.01)}, True),
        ({"reduce_lr": ReduceLrParameters(factor=0.0099)}, False),
    ],
)
def test_a_rollback_stays_within_the_limits(control, make, snapshot, options, is_allowed):
    control.inbox.offer([make.command(make.rollback(snapshot, **options))])
    assert control.executor.boundary() is is_allowed
    control.step()
    expected = ("applied", None) if is_allowed else ("rejected", "beyond_limits")
    assert words(control) == [expected]


def test_cuts_never_go_below_the_lowest_scale(control, make):
    for _ in range(20):
        control.inbox.offer([make.command(ReduceLrParameters(factor=0.5))])
        control.executor.boundary()
        control.step()
    assert control.override.scale == 0.5**6
    assert words(control)[5:7] == [("applied", None), ("rejected", "beyond_limits")]


def test_rollbacks_are_counted(control, make, snapshot):
    for attempt in (1, 2, 3, 4):
        control.inbox.offer([make.command(make.rollback(snapshot), attempt=attempt)])
        control.executor.boundary()
    assert words(control) == [("applied", None)] * 3 + [("rejected", "beyond_limits")]
    assert control.executor.rollbacks == 3
