from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from stabilizer.protocol.queries import (
    AuditEntry,
    CommandCreate,
    CommandRequest,
    Note,
    SeriesQuery,
    SilenceCreate,
)

LATER = datetime(2026, 3, 1, tzinfo=UTC)


class TestSilence:
    @pytest.mark.parametrize(
        "given", [{"until": LATER}, {"until_step": 5, "run_id": "r"}, {"until": LATER, "rule": "*"}]
    )
    def test_with_an_end(self, given):
        assert SilenceCreate(**{"rule": "loss_high", "reason": "known"} | given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "exactly one"),
            ({"until": LATER, "until_step": 5, "run_id": "r"}, "exactly one"),
            ({"until_step": 5}, "needs run_id"),
            ({"until": LATER.replace(tzinfo=None)}, "timezone"),
        ],
    )
    def test_without_a_clear_end_it_is_refused(self, given, message):
        with pytest.raises(ValidationError, match=message):
            SilenceCreate(**{"rule": "loss_high", "reason": "known"} | given)


class TestCommand:
    def test_a_rollback_names_its_target_in_one_way(self):
        given = {"kind": "rollback", "snapshot_id": "s", "to_step": 5}
        with pytest.raises(ValidationError, match="not both"):
            TypeAdapter(CommandRequest).validate_python(given)

    @pytest.mark.parametrize(
        "given",
        [
            {"parameters": {"kind": "pause"}},
            {"parameters": {"kind": "pause"}, "reason": ""},
            {"parameters": {"kind": "dance"}, "reason": "x"},
            {"parameters": {"kind": "pause", "hard": True}, "reason": "x"},
            {"parameters": {"kind": "pause"}, "reason": "x", "ttl_seconds": 0},
        ],
    )
    def test_what_means_nothing_is_refused(self, given):
        with pytest.raises(ValidationError):
            CommandCreate.model_validate(given)


def test_a_note_needs_a_reason():
    with pytest.raises(ValidationError):
        Note(reason="")


@pytest.mark.parametrize("max_points", [0, 3, 100_001])
def test_a_chart_has_at_least_four_points(max_points):
    with pytest.raises(ValidationError):
        SeriesQuery(series=("loss",), max_points=max_points)


@pytest.mark.parametrize("reason", ["divergence", "expired", "sent_to_job"])
def test_a_reason_of_the_log_is_of_one_of_three_kinds(reason):
    entry = {
        "id": 1,
        "at": LATER,
        "run_id": None,
        "actor": "policy",
        "action": "command_changed",
        "subject": "c",
        "reason": reason,
        "message": "",
        "before": None,
        "after": None,
    }
    assert AuditEntry.model_validate(entry).model_dump(mode="json")["reason"] == reason
    with pytest.raises(ValidationError):
        AuditEntry.model_validate(entry | {"reason": "a mood"})
