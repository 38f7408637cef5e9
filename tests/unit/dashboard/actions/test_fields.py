"""Form values read as commands and silences, or refused with the name of the field."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from dashboard.actions.send_command import CommandFields
from dashboard.actions.silence import SilenceFields
from stabilizer.protocol.commands import CommandKind, ReduceLrParameters
from stabilizer.protocol.queries import RollbackRequest

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CUT = ReduceLrParameters(factor=0.5, hold_steps=500, ramp_steps=500)
FULL = {
    "snapshot": "s4",
    "skip_steps": 5,
    "with_cut": False,
    "factor": 0.5,
    "hold_steps": 500,
    "ramp_steps": 500,
}
NO_STEPS = (-1, 1.5, "many", math.nan, math.inf, 10_000_001, 10**30)


def refusal(act):
    with pytest.raises(ValueError, match=r"\S") as caught:
        act()
    return str(caught.value)


class TestCommands:
    def test_a_rollback_is_read_with_what_belongs_to_it(self):
        plain = CommandFields(kind="rollback", **FULL).request()
        assert plain == RollbackRequest(snapshot_id="s4", skip_steps=5)
        cut = CommandFields(kind="rollback", **FULL | {"with_cut": True}).request()
        assert cut == RollbackRequest(snapshot_id="s4", skip_steps=5, reduce_lr=CUT)

    def test_rollback_fields_are_ignored_for_a_reduction(self):
        fields = FULL | {"snapshot": None, "skip_steps": "x"}
        assert CommandFields(kind="reduce_lr", **fields).request() == CUT

    @pytest.mark.parametrize("kind", ["pause", "resume", "stop", "checkpoint_now"])
    def test_a_plain_command_needs_no_field(self, kind):
        assert CommandFields(kind=kind).request().kind is CommandKind(kind)

    @pytest.mark.parametrize("kind", ["pause", "stop"])
    def test_what_is_left_in_fields_that_are_not_shown_any_more_does_not_matter(self, kind):
        fields = {"with_cut": True, "factor": "", "hold_steps": -1, "skip_steps": "x"}
        assert CommandFields(kind=kind, **fields).request().kind is CommandKind(kind)

    def test_empty_numbers_are_what_the_form_says_they_are(self):
        rollback = CommandFields(kind="rollback", snapshot="s4", skip_steps="").request()
        assert rollback == RollbackRequest(snapshot_id="s4", skip_steps=0)
        cut = CommandFields(kind="reduce_lr", factor=0.5, hold_steps="", ramp_steps=None).request()
        assert cut == ReduceLrParameters(factor=0.5, hold_steps=None, ramp_steps=0)

    def test_empty_fields_are_not_until_changed(self):
        cut = CommandFields(kind="reduce_lr", factor=1, hold_steps=0, ramp_steps=0).request()
        assert cut.hold_steps == 0

    @pytest.mark.parametrize("kind", [None, "", "explode", "rollback ", 3, ["pause"], {}], ids=repr)
    def test_a_kind_that_does_not_exist_must_be_chosen(self, kind):
        assert refusal(CommandFields(kind=kind).request) == "choose a command"

    @pytest.mark.parametrize("snapshot", [None, ""])
    def test_a_rollback_needs_a_snapshot(self, snapshot):
        fields = FULL | {"snapshot": snapshot}
        assert "snapshot" in refusal(CommandFields(kind="rollback", **fields).request)

    def test_a_name_that_no_snapshot_has_is_refused_by_the_name_of_the_field(self):
        fields = FULL | {"snapshot": "s" * 65}
        said = refusal(CommandFields(kind="rollback", **fields).request)
        assert said.startswith("snapshot id: ")
        assert "64" in said

    @pytest.mark.parametrize("factor", [0, -0.5, 1.0001, 1e300, math.nan, math.inf, "", None, "x"])
    @pytest.mark.parametrize("kind", ["reduce_lr", "rollback"])
    def test_a_factor_that_cannot_be_is_refused_by_its_name(self, kind, factor):
        fields = FULL | {"factor": factor, "with_cut": True}
        assert refusal(CommandFields(kind=kind, **fields).request).startswith("factor: ")

    @pytest.mark.parametrize("value", NO_STEPS, ids=repr)
    @pytest.mark.parametrize("field", ["hold_steps", "ramp_steps"])
    def test_steps_that_cannot_be_are_refused_by_their_name(self, field, value):
        fields = FULL | {field: value}
        said = refusal(CommandFields(kind="reduce_lr", **fields).request)
        assert said.startswith(field.replace("_", " ") + ": ")

    @pytest.mark.parametrize("value", NO_STEPS, ids=repr)
    def test_a_skip_that_cannot_be_is_refused_by_its_name(self, value):
        fields = FULL | {"skip_steps": value}
        said = refusal(CommandFields(kind="rollback", **fields).request)
        assert said.startswith("skip steps: ")


class TestSilences:
    @pytest.mark.parametrize("minutes", [0.5, 60, "60", 10_080])
    def test_an_end_by_the_clock_counts_from_now(self, minutes):
        ends = SilenceFields(rule="r", end="minutes", minutes=minutes, until_step="x").ends(NOW)
        assert ends == {"until": NOW + timedelta(minutes=float(minutes))}

    @pytest.mark.parametrize("step", [0, 300, "300", 2**53])
    def test_an_end_by_steps_is_a_step(self, step):
        ends = SilenceFields(rule="r", end="step", minutes="x", until_step=step).ends(NOW)
        assert ends == {"until_step": int(step)}

    @pytest.mark.parametrize(
        "minutes", [0, -1, 10_081, 1e300, math.nan, math.inf, "", None, "long"], ids=repr
    )
    def test_a_time_that_cannot_be_is_refused(self, minutes):
        fields = SilenceFields(rule="r", end="minutes", minutes=minutes)
        assert refusal(lambda: fields.ends(NOW))

    @pytest.mark.parametrize(
        "step", [-1, 2**53 + 1, 10**400, 1.5, math.nan, math.inf, "", None, "then"], ids=repr
    )
    def test_a_step_that_cannot_be_is_refused(self, step):
        fields = SilenceFields(rule="r", end="step", until_step=step)
        assert refusal(lambda: fields.ends(NOW))
