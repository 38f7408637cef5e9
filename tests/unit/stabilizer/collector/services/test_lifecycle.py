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


class Transaction:
    """Stands for a transaction: keeps what would be written."""

    def __init__(self):
        self.now = "now"
        self.run = SimpleNamespace(id="run")
        self.changed_commands, self.events = [], []

    def audit(self, event):
        self.events.append(event)


def command(state):
    return CommandRow(
        id="c", state=state.value, issued_reason="manual", issued_message="by hand", result=None
    )


def test_the_table_names_every_state():
    assert set(TRANSITIONS) == set(CommandState)


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda state: state.value)
def test_every_step_is_allowed_or_refused_as_agreed(before, after):
    tx, row = Transaction(), command(before)
    cause = Cause(actor="job", reason=AuditReason.REPORTED_BY_JOB, message="because")
    if (before, after) not in ALLOWED:
        with pytest.raises(ConflictError) as caught:
            move_command(tx, row, after, cause)
        assert caught.value.code == "command_settled"
        assert (row.state, tx.events, tx.changed_commands) == (before, [], [])
        return
    move_command(tx, row, after, cause)
    (event,) = tx.events
    assert (event.before, event.after) == ({"state": before}, {"state": after})
    assert tx.changed_commands == [row]
    assert (row.settled_at == "now") == (after in SETTLED_STATES)
    assert (row.delivered_at == "now") == (after == "delivered")
