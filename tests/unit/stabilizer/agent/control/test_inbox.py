from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from stabilizer.agent.control import inbox as module
from stabilizer.agent.control.inbox import CommandInbox
from stabilizer.errors import ControlError
from stabilizer.protocol.commands import CommandResult, CommandState


@pytest.fixture
def results():
    return []


@pytest.fixture
def inbox(clock, results):
    return CommandInbox(clock, results.append)


def applied(command):
    return CommandResult(command_id=command.id, state=CommandState.APPLIED)


def test_commands_are_taken_once_in_order(inbox, make):
    first, second = make.command(), make.command()
    inbox.offer([first, second])
    inbox.offer([first])
    assert inbox.take() == [first, second]
    inbox.offer([first, second])
    assert inbox.take() == []


@pytest.mark.parametrize(
    "state", [CommandState.PROPOSED, CommandState.APPLIED, CommandState.CANCELLED]
)
def test_what_is_not_to_be_carried_out_is_not_taken_in(inbox, make, state):
    command = make.command(state=state)
    inbox.offer([command])
    assert inbox.take() == []
    approved = command.model_copy(update={"state": CommandState.DELIVERED})
    inbox.offer([approved])
    assert inbox.take() == [approved]


def test_an_expired_command_is_answered(inbox, make, clock, results):
    command, other = make.command(ttl_seconds=60), make.command(ttl_seconds=61)
    inbox.offer([command, other])
    clock.time += timedelta(seconds=60)
    assert inbox.take() == [other]
    assert [(r.command_id, r.state, r.reason) for r in results] == [
        (command.id, "expired", "expired")
    ]


def test_wait_returns_at_once_when_a_command_is_there_and_false_when_none_comes(inbox, make):
    assert not inbox.wait(0.0)
    thread = threading.Thread(target=lambda: inbox.offer([make.command()]))
    thread.start()
    assert inbox.wait(30.0)
    thread.join()


def test_a_restarted_job_repeats_the_result_instead_of_the_deed(inbox, make, clock, results):
    command, unread = make.command(), make.command()
    inbox.offer([command, unread])
    inbox.take()
    inbox.settle(applied(command))
    reported = []
    restarted = CommandInbox(clock, reported.append)
    restarted.load_state_dict(inbox.state_dict())
    assert restarted.state_dict() == inbox.state_dict()
    restarted.offer([command, unread])
    assert restarted.take() == [unread]
    assert reported == [applied(command)]
    restarted.offer([command])
    assert reported == [applied(command)]
    assert restarted.take() == []


def test_loading_into_an_inbox_that_has_settled_the_same_changes_nothing(inbox, make):
    command = make.command()
    inbox.settle(applied(command))
    inbox.load_state_dict(inbox.state_dict())
    inbox.offer([command])
    assert inbox.take() == []


@pytest.mark.parametrize("state", [{}, {"settled": 3}, {"settled": [{"state": "?"}]}])
def test_a_foreign_state_is_refused(inbox, state):
    with pytest.raises(ControlError):
        inbox.load_state_dict(state)


def test_memory_is_bounded(inbox, make, monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    commands = [make.command() for _ in range(5)]
    for command in commands:
        inbox.offer([command])
        inbox.settle(applied(command))
    assert [item["command_id"] for item in inbox.state_dict()["settled"]] == [
        command.id for command in commands[2:]
    ]
    inbox.take()
    inbox.offer(commands[2:])
    assert inbox.take() == []


def test_a_command_for_another_run_is_rejected_once(inbox, make, results):
    foreign, own = make.command().model_copy(update={"run_id": "other"}), make.command()
    inbox.offer([foreign, own], run_id="run")
    inbox.offer([foreign, own], run_id="run")
    assert inbox.take() == [own]
    assert [(r.command_id, r.state, r.reason) for r in results] == [
        (foreign.id, "rejected", "other_run")
    ]
