import json
import math

import dash_mantine_components as dmc
import plotly
import pytest
from dash import html

from dashboard import ids
from dashboard.components.command_card import command_card, preview_panel
from dashboard.components.command_progress import ReadBackContext
from stabilizer.protocol.commands import (
    CommandResult,
    CommandState,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.queries import AuditReason
from stabilizer.protocol.views import PreviewWarning

TARGET = SnapshotTarget(snapshot_id="a1-200", attempt=1, step=200)
HOSTILE = "<img src=x onerror=alert(1)> [link](javascript:alert(1))"


def buttons(parts, card) -> list[object]:
    return [part.id for part in parts(card) if isinstance(part, dmc.Button)]


@pytest.mark.parametrize(
    ("state", "types"),
    [
        (CommandState.PROPOSED, [ids.APPROVE, ids.REJECT]),
        (CommandState.PENDING, [ids.CANCEL]),
        (CommandState.DELIVERED, []),
        (CommandState.EXPIRED, []),
    ],
)
def test_card_has_the_buttons_of_its_state(create_command, parts, now, state, types):
    card = command_card(create_command(state=state), now=now)
    assert buttons(parts, card) == [{"type": kind, "id": "c1"} for kind in types]


def test_expired_proposal_cannot_be_approved(create_command, parts, text_of, minute):
    card = command_card(create_command(), now=minute(41))
    assert buttons(parts, card) == []
    assert "expired at 14:40 UTC" in text_of(card)


def test_proposal_shows_the_time_left(create_command, text_of, minute):
    card = command_card(create_command(), now=minute(32))
    assert "expires in  8 min" in text_of(card)
    assert "approval needed" in text_of(card)


def test_applied_command_shows_expected_and_read_values(create_applied, text_of, now):
    text = text_of(command_card(create_applied(), now=now, known=ReadBackContext(global_batch=64)))
    assert "step 200 200 matches" in text
    assert "samples skipped 640 640 matches" in text
    assert "skip 10 steps of data (640 samples)" in text
    assert "expires" not in text


def test_nan_in_a_read_back_is_a_mismatch(create_applied, text_of, now):
    text = text_of(command_card(create_applied(lr={"0": math.nan}), now=now))
    assert "0: NaN differs" in text
    assert "read-back differs: learning rate" in text


def test_failure_shows_the_message_of_the_job_as_plain_text(create_command, parts, text_of, now):
    result = CommandResult(
        command_id="c1",
        state=CommandState.FAILED,
        reason=RejectReason.RESTORE_FAILED,
        message=HOSTILE,
    )
    command = create_command(
        state=CommandState.FAILED, reason="restore_failed", message=HOSTILE, result=result
    )
    card = command_card(command, now=now)
    assert HOSTILE in text_of(card)
    assert [p.children for p in parts(card) if isinstance(p, html.Pre)] == [HOSTILE]


def test_rejection_names_and_quotes_the_user(create_command, moved, text_of, now):
    command = create_command(
        state=CommandState.REJECTED, reason="refused_by_person", message="bad shard"
    )
    entry = moved("proposed", "rejected", actor="person:bo", reason=RejectReason.REFUSED_BY_PERSON)
    text = text_of(command_card(command, now=now, history=[entry]))
    assert "rejected bo rejected by a user" in text
    assert "bo:  bad shard" in text


def test_settled_command_keeps_its_first_reason(create_command, moved, text_of, now):
    command = create_command(state=CommandState.REJECTED, reason="refused_by_person", message="no")
    created = moved(None, "proposed", reason="relapse")
    assert "Reason: relapse, or no improvement." in text_of(
        command_card(command, now=now, history=[created])
    )
    assert "Sent by the policy." in text_of(command_card(command, now=now))


def test_manual_command_quotes_its_user(create_command, text_of, now):
    command = create_command(
        state=CommandState.PENDING,
        actor="person:anna",
        reason="manual",
        message="look at shard 17",
        parameters=PauseParameters(),
    )
    assert "anna:  look at shard 17" in text_of(command_card(command, now=now))


def test_approval_shows_its_reason(create_command, moved, text_of, now):
    command = create_command(state=CommandState.DELIVERED)
    entry = moved(
        "proposed",
        "pending",
        actor="person:anna",
        reason=AuditReason.APPROVED_BY_PERSON,
        message="looks right",
    )
    text = text_of(command_card(command, now=now, history=[moved(None, "proposed"), entry]))
    assert "approved anna" in text
    assert "looks right" in text


def test_preview_is_shown_until_the_command_is_settled(
    create_command, create_applied, create_preview, text_of, now
):
    preview = create_preview()
    waiting = command_card(create_command(), now=now, preview=preview)
    assert "112 steps, about 3 min 20 s" in text_of(waiting)
    settled = command_card(create_applied(), now=now, preview=preview)
    assert "about 3 min 20 s" not in text_of(settled)


def test_preview_of_a_rollback_shows_lost_steps_and_skipped_data(create_preview, text_of):
    text = text_of(preview_panel(create_preview()))
    assert "step 200, attempt 1, snapshot a1-200" in text
    assert " healthy " in text
    assert "10 steps of data (640 samples), from sample 12,800 on" in text
    assert "lr_scale" not in text


def test_preview_leaves_out_unknown_values(create_preview, text_of):
    preview = create_preview(seconds_lost=None, skipped_samples=None, skip_from_sample=None)
    text = text_of(preview_panel(preview))
    assert "112 steps, duration unknown" in text
    assert "10 steps of data" in text
    assert "samples" not in text


def test_preview_of_a_cut_shows_each_group_before_and_after(create_preview, text_of):
    cut = ReduceLrParameters(factor=0.5, hold_steps=500, ramp_steps=100)
    preview = create_preview(
        parameters=RollbackParameters(target=TARGET, reduce_lr=cut),
        lr={"decay": 3e-4, "bias": math.nan},
        lr_after={"decay": 1.5e-4},
        lr_scale_before=1.0,
        lr_scale_after=0.5,
    )
    text = text_of(preview_panel(preview))
    assert "1 \u2192 0.5, held for 500 steps, then ramp back over 100 steps" in text
    assert "decay 0.0003 \u2192 0.00015" in text
    assert "bias NaN \u2192 unknown" in text


def test_preview_of_a_pause_has_no_target(create_preview, text_of):
    preview = create_preview(
        parameters=PauseParameters(), steps_lost=0, skip_steps=0, target_healthy=None
    )
    text = text_of(preview_panel(preview))
    assert "pause at the next step boundary" in text
    assert "rolls back" not in text


@pytest.mark.parametrize("warning", list(PreviewWarning))
def test_preview_shows_every_warning(create_preview, text_of, warning):
    calm = text_of(preview_panel(create_preview()))
    assert len(text_of(preview_panel(create_preview(warnings=(warning,))))) > len(calm)


def test_card_can_be_sent_to_a_browser(create_applied, create_preview, now):
    card = command_card(create_applied(lr={"0": math.nan}), now=now, preview=create_preview())
    sent = json.dumps(card.to_plotly_json(), cls=plotly.utils.PlotlyJSONEncoder)
    assert json.loads(sent)["props"]["className"] == "card command-card"
