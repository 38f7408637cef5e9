import dataclasses
import json

import dash_mantine_components as dmc
import plotly
import pytest

from dashboard.actions import answer, arming, mode, send_command, silence
from dashboard.actions.answer import Verb, answer_form
from dashboard.actions.arming import arming_form
from dashboard.actions.form import error_notice
from dashboard.actions.mode import mode_form
from dashboard.actions.send_command import command_form
from dashboard.actions.silence import silence_form
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import CommandKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.views import SnapshotState


def snapshot(step: int, *, healthy: bool, finite: bool = True, attempt: int = 1) -> SnapshotState:
    info = SnapshotInfo(id=f"a{attempt}-{step}", attempt=attempt, step=step, finite=finite)
    return SnapshotState(snapshot=info, healthy=healthy)


SNAPSHOTS = (
    snapshot(100, healthy=True),
    snapshot(200, healthy=True),
    snapshot(300, healthy=False),
    snapshot(400, healthy=True, finite=False),
)


@pytest.fixture
def by_id(parts):
    return lambda node: {
        part.id: part for part in parts(node) if getattr(part, "id", None) is not None
    }


SEND_FIELDS = {
    send_command.KIND,
    send_command.SNAPSHOT,
    send_command.SKIP_STEPS,
    send_command.WITH_CUT,
    send_command.FACTOR,
    send_command.HOLD_STEPS,
    send_command.RAMP_STEPS,
}
SILENCE_FIELDS = {silence.RULE, silence.END, silence.MINUTES, silence.UNTIL_STEP}


@pytest.fixture
def every_form(create_command):
    """Ids, form and the ids of its own fields, by name."""
    command = create_command()
    return {
        "approve": (answer.FORM, answer_form(Verb.APPROVE, command), set()),
        "reject": (answer.FORM, answer_form(Verb.REJECT, command), set()),
        "cancel": (answer.FORM, answer_form(Verb.CANCEL, command), set()),
        "command": (send_command.FORM, command_form(SNAPSHOTS), SEND_FIELDS),
        "mode": (mode.FORM, mode_form(Mode.PROPOSE), {mode.MODE}),
        "silence": (silence.FORM, silence_form(["loss_jump"], 500), SILENCE_FIELDS),
        "disarm": (arming.FORM, arming_form(disarmed=False), set()),
        "arm": (arming.FORM, arming_form(disarmed=True), set()),
    }


NAMES = ["approve", "reject", "cancel", "command", "mode", "silence", "disarm", "arm"]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_all_its_parts_and_asks_for_a_reason(every_form, by_id, name):
    ids, form, fields = every_form[name]
    found = by_id(form)
    assert set(found) == {*dataclasses.asdict(ids).values(), *fields} - {ids.dialog}
    assert found[ids.reason].required is True
    assert found[ids.reason].value == ""
    assert isinstance(found[ids.submit], dmc.Button)


@pytest.mark.parametrize("name", NAMES)
def test_every_input_has_a_label(every_form, parts, name):
    kinds = (dmc.NumberInput, dmc.Textarea, dmc.Select, dmc.RadioGroup, dmc.Radio, dmc.Checkbox)
    inputs = [part for part in parts(every_form[name][1]) if isinstance(part, kinds)]
    assert inputs
    assert all(part.label for part in inputs)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_can_be_sent_to_a_browser(every_form, name):
    ids, form, _ = every_form[name]
    sent = json.dumps(form.to_plotly_json(), cls=plotly.utils.PlotlyJSONEncoder)
    assert f'"{ids.reason}"' in sent


def test_newest_healthy_snapshot_is_chosen(by_id):
    found = by_id(command_form(SNAPSHOTS))
    assert found[send_command.SNAPSHOT].value == "a1-200"


def test_snapshots_are_newest_first_and_non_finite_ones_disabled(parts, text_of):
    form = command_form(SNAPSHOTS)
    radios = [part for part in parts(form) if isinstance(part, dmc.Radio)]
    radios = [radio for radio in radios if radio.value.startswith("a1-")]
    assert [radio.value for radio in radios] == ["a1-400", "a1-300", "a1-200", "a1-100"]
    assert [radio.disabled for radio in radios] == [True, False, False, False]
    assert text_of(radios[0]) == "step 400 attempt 1 not finite a1-400"


@pytest.mark.parametrize("snapshots", [(), SNAPSHOTS[2:]])
def test_without_a_healthy_snapshot_none_is_chosen(by_id, snapshots):
    found = by_id(command_form(snapshots))
    assert found[send_command.SNAPSHOT].value is None


def test_a_job_without_snapshots_is_named(text_of):
    assert "holds no snapshot" in text_of(command_form(()))


def test_every_kind_of_command_can_be_chosen(parts):
    form = command_form((), kind=CommandKind.PAUSE)
    values = {part.value for part in parts(form) if isinstance(part, dmc.Radio)}
    assert values == {kind.value for kind in CommandKind}


def test_numbers_stay_within_what_the_collector_takes(by_id):
    found = by_id(command_form(()))
    factor, skip = found[send_command.FACTOR], found[send_command.SKIP_STEPS]
    assert 0 < factor.min < factor.max == 1
    assert (skip.min, skip.max, skip.allowDecimal) == (0, 10_000_000, False)


def test_present_mode_is_marked_and_chosen(parts, by_id):
    form = mode_form(Mode.AUTO)
    labels = [part.label for part in parts(form) if isinstance(part, dmc.Radio)]
    assert labels == ["observe", "propose", "auto (current)"]
    assert by_id(form)[mode.MODE].value == "auto"


def test_silence_ends_after_the_current_step(by_id):
    until = by_id(silence_form(["a"], 500))[silence.UNTIL_STEP]
    assert until.min == 500
    assert until.value > 500


def test_answer_form_repeats_what_the_command_does(create_command, create_preview, text_of):
    form = answer_form(Verb.APPROVE, create_command(), global_batch=64, preview=create_preview())
    text = text_of(form)
    assert "skip 10 steps of data (640 samples)." in text
    assert "Effect if applied now" in text


def test_error_is_announced_as_text(text_of):
    notice = error_notice("<b>no</b>")
    assert notice.role == "alert"
    assert text_of(notice) == "<b>no</b>"
