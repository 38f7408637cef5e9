import math

import pytest

from dashboard.components.command_progress import (
    ReadBackContext,
    ReadBackVerdict,
    StageState,
    stages,
    verify,
)
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    CommandResult,
    CommandState,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.queries import AuditReason

TARGET = SnapshotTarget(snapshot_id="a1-200", attempt=1, step=200)
CUT = ReduceLrParameters(factor=0.5, hold_steps=100)


def answers(verdict: ReadBackVerdict) -> dict[str, bool | None]:
    return {check.what: check.ok for check in verdict.checks}


def test_rollback_to_the_target_step_is_verified(create_applied):
    verdict = verify(create_applied(), ReadBackContext(global_batch=64))
    assert verdict.ok is True
    assert answers(verdict) == {
        "step": True,
        "attempt": True,
        "samples skipped": True,
        "learning rate": True,
    }


@pytest.mark.parametrize(
    ("read", "what"),
    [
        ({"step": 201}, "step"),
        ({"attempt": 1}, "attempt"),
        ({"skipped_samples": 0}, "samples skipped"),
        ({"lr": {"0": math.nan}}, "learning rate"),
        ({"lr": {"0": 3e-4, "1": math.inf}}, "learning rate"),
    ],
)
def test_rollback_with_another_read_back_is_a_mismatch(create_applied, read, what):
    verdict = verify(create_applied(**read), ReadBackContext(global_batch=64))
    assert verdict.ok is False
    assert [check.what for check in verdict.checks if check.ok is False] == [what]


def test_skip_with_unknown_batch_is_not_verified(create_applied):
    assert answers(verify(create_applied()))["samples skipped"] is None
    assert verify(create_applied()).ok is True


def test_no_skip_needs_no_batch(create_applied):
    parameters = RollbackParameters(target=TARGET)
    assert answers(verify(create_applied(parameters)))["samples skipped"] is False
    read = verify(create_applied(parameters, skipped_samples=0))
    assert answers(read)["samples skipped"] is True


@pytest.mark.parametrize(
    ("before", "scale", "ok"),
    [
        (1.0, 0.5, True),
        (0.75, 0.375, True),
        (float.fromhex("0x1.99999ap-1"), 0.4, True),  # 0.8 as float32 keeps it
        (1.0, 0.75, False),
        (0.75, 0.3, False),
        (0.75, 0.4, None),  # an earlier cut is on its way back
        (0.75, 0.75, False),
        (1.0, math.nan, False),
        (1.0, -0.5, False),
        (None, 0.5, True),
        (None, 0.2, True),
        (None, 0.6, False),
        (None, math.nan, False),
        (math.nan, 0.5, True),
    ],
)
def test_cut_is_compared_with_the_scale_before(create_applied, before, scale, ok):
    command = create_applied(CUT, attempt=1, lr_scale=scale)
    assert answers(verify(command, ReadBackContext(lr_scale=before)))["lr_scale"] is ok


def test_rollback_with_a_cut_checks_both(create_applied):
    parameters = RollbackParameters(target=TARGET, skip_steps=10, reduce_lr=CUT)
    verdict = verify(create_applied(parameters, lr_scale=1.0), ReadBackContext(global_batch=64))
    assert answers(verdict)["lr_scale"] is False
    assert answers(verdict)["step"] is True


def test_cut_in_another_attempt_differs(create_applied):
    assert answers(verify(create_applied(CUT, lr_scale=0.5)))["attempt"] is False


def test_missing_rates_are_not_verified(create_applied):
    assert answers(verify(create_applied(lr={})))["learning rate"] is None


def test_pause_is_verified_at_its_applied_step(create_applied):
    assert verify(create_applied(PauseParameters(), step=314)).ok is True
    assert verify(create_applied(PauseParameters(), step=315)).ok is False
    assert verify(create_applied(PauseParameters(), applied_step=None)).ok is None


def test_checkpoint_needs_a_path(create_applied):
    parameters = CheckpointNowParameters()
    assert verify(create_applied(parameters)).ok is False
    assert verify(create_applied(parameters, checkpoint_path="/out/step-314.ckpt")).ok is True


def test_command_without_read_back_is_not_verified(create_command):
    result = CommandResult(command_id="c1", state=CommandState.APPLIED, applied_step=314)
    command = create_command(state=CommandState.APPLIED, result=result)
    assert verify(command) == ReadBackVerdict()
    assert verify(command).ok is None
    assert stages(command)[-1].state is StageState.UNKNOWN


def told(command, history=()) -> list[tuple[str, str]]:
    return [(stage.name, stage.state.value) for stage in stages(command, history=history)]


def test_proposal_needs_approval(create_command):
    assert told(create_command()) == [
        ("proposed", "done"),
        ("approved", "now"),
        ("delivered", "ahead"),
        ("applied", "ahead"),
        ("verified", "ahead"),
    ]


def test_applied_proposal_names_who_approved_it(create_applied, moved):
    history = [
        moved(None, "proposed"),
        moved(
            "proposed",
            "pending",
            actor="person:anna",
            reason=AuditReason.APPROVED_BY_PERSON,
            message="as the loss says",
        ),
    ]
    story = stages(create_applied(), history=history)
    assert [stage.name for stage in story] == [
        "proposed",
        "approved",
        "delivered",
        "applied",
        "verified",
    ]
    assert {stage.state for stage in story} == {StageState.DONE}
    assert (story[1].who, story[1].text) == ("anna", "as the loss says")
    assert story[3].text == "at step 314"


def test_manual_command_was_never_proposed(create_command, moved):
    command = create_command(state=CommandState.PENDING, actor="person:anna")
    assert told(command, [moved(None, "pending", actor="person:anna")])[:2] == [
        ("sent", "done"),
        ("delivered", "now"),
    ]


def test_mismatch_marks_the_last_stage_as_broken(create_applied):
    last = stages(create_applied(step=201))[-1]
    assert (last.name, last.state) == ("mismatch", StageState.BROKEN)
    assert "step" in last.text


def test_verdict_of_the_caller_is_used(create_applied):
    command = create_applied(skipped_samples=0)
    verdict = verify(command, ReadBackContext(global_batch=64))
    assert stages(command)[-1].state is StageState.DONE
    assert stages(command, verdict=verdict)[-1].state is StageState.BROKEN


def test_rejected_proposal_names_who_rejected_it(create_command, moved):
    command = create_command(
        state=CommandState.REJECTED, reason="refused_by_person", message="no", settled_at=None
    )
    entry = moved("proposed", "rejected", actor="person:bo", reason=RejectReason.REFUSED_BY_PERSON)
    assert told(command, [moved(None, "proposed"), entry]) == [
        ("proposed", "done"),
        ("rejected", "broken"),
    ]
    assert stages(command, history=[entry])[-1].who == "bo"
    assert stages(command)[-1].who == "a user"


def test_failure_follows_the_delivery(create_command, minute):
    result = CommandResult(
        command_id="c1", state=CommandState.FAILED, reason=RejectReason.RESTORE_FAILED
    )
    command = create_command(
        state=CommandState.FAILED,
        reason="restore_failed",
        delivered_at=minute(13),
        settled_at=minute(14),
        result=result,
    )
    assert told(command)[-2:] == [("delivered", "done"), ("failed", "broken")]
    assert stages(command)[-1].who == "the job"
    assert stages(command)[-1].text == "the restore failed"


def test_expired_proposal_was_never_delivered(create_command, minute):
    command = create_command(state=CommandState.EXPIRED, reason="expired", settled_at=minute(40))
    assert told(command)[-1] == ("expired", "broken")
    assert stages(command)[-1].who == "the collector"


def test_late_result_is_marked_as_late(create_applied, moved):
    history = [
        moved("delivered", "expired", actor="collector", reason=RejectReason.EXPIRED),
        moved("expired", "applied", actor="job", reason=AuditReason.CARRIED_OUT_LATE),
    ]
    applied = stages(create_applied(), history=history)[-2]
    assert applied.text == "at step 314, after it had expired"


def test_history_of_other_commands_is_ignored(create_command, moved):
    other = moved("proposed", "pending", subject="c2", reason=AuditReason.APPROVED_BY_PERSON)
    assert "approved" not in [s.name for s in stages(create_command(), history=[other])[:1]]
    assert told(create_command(), [other]) == told(create_command())
