from types import SimpleNamespace

import pytest

from stabilizer.collector.services.commands.lifecycle import TRANSITIONS, Cause, move_command
from stabilizer.collector.storage.models import CommandRow
from stabilizer.errors import ConflictError
from stabilizer.protocol.commands import SETTLED_STATES, CommandState
from stabilizer.protocol.queries import AuditReason

ALLOWED = {
    ("proposed", "pending"),
    ("proposed", "rejected"),
    ("proposed", "cancelled"),
    ("proposed", "expired"),
    ("pending", "delivered"),
    ("pending", "cancelled"),
    ("pending", "expired"),
    ("delivered", "applied"),
    ("delivered", "rejected"),
    ("delivered", "failed"),
    ("delivered", "expired"),
    ("expired", "applied"),
    ("expired", "rejected"),
    ("expired", "failed"),
}
PAIRS = [(before, after) for before in CommandState for after in CommandState]


class Work:
    """Stands for a transaction: keeps what would be written."""

    def __init__(self):
        self.now = "now"
        self.run = SimpleNamespace(id="run")
        self.changed_commands, self.deeds = [], []

    def audit(self, deed):
        self.deeds.append(deed)


def command(state):
    return CommandRow(
        id="c", state=state.value, issued_reason="manual", issued_message="by hand", result=None
    )


def test_the_table_names_every_state():
    assert set(TRANSITIONS) == set(CommandState)


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda state: state.value)
def test_every_step_is_allowed_or_refused_as_agreed(before, after):
    work, row = Work(), command(before)
    cause = Cause(actor="job", reason=AuditReason.REPORTED_BY_JOB, message="because")
    if (before, after) not in ALLOWED:
        with pytest.raises(ConflictError) as caught:
            move_command(work, row, after, cause)
        assert caught.value.code == "command_settled"
        assert (row.state, work.deeds, work.changed_commands) == (before, [], [])
        return
    move_command(work, row, after, cause)
    (deed,) = work.deeds
    assert (deed.before, deed.after) == ({"state": before}, {"state": after})
    assert work.changed_commands == [row]
    assert (row.settled_at == "now") == (after in SETTLED_STATES)
    assert (row.delivered_at == "now") == (after == "delivered")
