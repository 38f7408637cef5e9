"""Received commands that wait for the next step boundary.

The telemetry thread fills the queue, the training thread empties it. The collector repeats a
command in every answer until it has the result; the inbox accepts each command once per process
and, through the checkpoint, once per job.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from pydantic import ValidationError

from stabilizer.clock import Clock
from stabilizer.errors import ControlError
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    RejectReason,
)

_REMEMBERED: Final = 10_000
"""Command ids to keep. The collector expires commands long before this many follow."""


class CommandInbox:
    """Thread-safe queue that accepts each command once."""

    def __init__(self, clock: Clock, on_result: Callable[[CommandResult], None]) -> None:
        self._clock = clock
        self._on_result = on_result
        self._changed = threading.Condition()
        self._waiting: deque[Command] = deque()
        self._seen: dict[str, None] = {}
        self._settled: dict[str, CommandResult] = {}
        self._settled_before: dict[str, CommandResult] = {}

    def offer(self, commands: Iterable[Command], *, run_id: str | None = None) -> None:
        """Enqueue the new ones among these commands. Any thread.

        Args:
            commands: As received, oldest first.
            run_id: The run of this job; commands for another one are rejected. None if unknown.
        """
        again: list[CommandResult] = []
        with self._changed:
            for command in commands:
                if command.is_settled or command.state is CommandState.PROPOSED:
                    continue
                if run_id is not None and command.run_id != run_id:
                    again += self._reject_once(command, run_id)
                    continue
                if command.id in self._settled_before:  # the previous process never sent it
                    again.append(self._settled_before.pop(command.id))
                elif command.id not in self._seen:
                    self._remember(command.id)
                    self._waiting.append(command)
            if self._waiting:
                self._changed.notify_all()
        for result in again:
            self._on_result(result)

    def _reject_once(self, command: Command, run_id: str) -> list[CommandResult]:
        if command.id in self._seen:
            return []
        self._remember(command.id)
        message = f"it is for run {command.run_id[:100]!r}; this job is run {run_id[:100]!r}"
        return [
            CommandResult(
                command_id=command.id,
                state=CommandState.REJECTED,
                reason=RejectReason.OTHER_RUN,
                message=message,
            )
        ]

    def take(self) -> list[Command]:
        """Empty the queue, oldest first. Expired commands are settled and left out."""
        with self._changed:
            taken = list(self._waiting)
            self._waiting.clear()
        now = self._clock.now()
        live = []
        for command in taken:
            if command.expires_at <= now:
                self.settle(
                    CommandResult(
                        command_id=command.id,
                        state=CommandState.EXPIRED,
                        reason=RejectReason.EXPIRED,
                        message=f"expired at {command.expires_at.isoformat()} before it was read",
                    )
                )
            else:
                live.append(command)
        return live

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a command. Returns whether there is one. Ctrl-C interrupts the wait."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting), timeout_seconds)

    def settle(self, result: CommandResult) -> None:
        """Report a command's result and keep it for the checkpoint."""
        with self._changed:
            self._settled[result.command_id] = result
            while len(self._settled) > _REMEMBERED:
                del self._settled[next(iter(self._settled))]
        self._on_result(result)

    def state_dict(self) -> dict[str, Any]:
        """Return the results so far, for a checkpoint."""
        with self._changed:
            everything = {**self._settled_before, **self._settled}
        return {"settled": [result.model_dump(mode="json") for result in everything.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember the commands that the job applied before it restarted.

        Raises:
            ControlError: The state cannot be read.
        """
        try:
            results = [CommandResult.model_validate(item) for item in state["settled"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise ControlError("the saved command results cannot be read") from error
        with self._changed:
            for result in results:
                self._remember(result.command_id)
                if result.command_id not in self._settled:
                    self._settled_before[result.command_id] = result

    def _remember(self, command_id: str) -> None:
        self._seen[command_id] = None
        while len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
