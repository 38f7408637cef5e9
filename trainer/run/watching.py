"""The agent, where the run is watched, and what the trainer learns from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from stabilizer.agent import StabilizerCallback
from stabilizer.protocol.batches import SnapshotInfo
from trainer.config import SOLO, MonitorConfig, RunConfig, find_policy

_SECRETS: Final = re.compile(r"(?<=://)[^/@\s]*@|\?[\w.-]+=\S*\Z")
"""What an address may carry besides the place: a user with a password, and a signed query."""


def build_watcher(monitor: MonitorConfig, *, token: str | None) -> StabilizerCallback | None:
    """Return the agent's callback; None where nobody watches.

    Args:
        monitor: Who watches.
        token: For the collector, where it wants one.

    Raises:
        ConfigurationError: The policy is not there, or has mistakes.
    """
    if monitor.collector is None:
        return None
    return StabilizerCallback(
        None if monitor.collector == SOLO else monitor.collector,
        run=monitor.run,
        token=token,
        mode=monitor.mode,
        policy=None if monitor.policy is None else find_policy(monitor.policy),
        snapshot_every=monitor.snapshot_every,
        keep_snapshots=monitor.keep_snapshots,
    )


def registered_config(config: RunConfig) -> dict[str, Any]:
    """Return what the collector may know of a configuration: all of it, without passwords.

    Addresses of data lose what stands in front of the host and behind the path.
    """
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)), object_pairs_hook=_without)
    return fields


def _without(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _bare(value) for name, value in pairs}


def _bare(value: Any) -> Any:  # noqa: ANN401  JSON
    if isinstance(value, str) and "://" in value:
        return _SECRETS.sub("", value)
    return [_bare(one) for one in value] if isinstance(value, list) else value


class AgentHealth:
    """The collector's word on the snapshots of a watched run."""

    def __init__(self, watcher: StabilizerCallback) -> None:
        """Ask the agent of this run."""
        self._watcher = watcher

    @property
    def attempt(self) -> int:
        """Number of the present attempt."""
        job = self._watcher.job
        return 0 if job is None else job.attempt

    def healthy(self) -> Iterable[SnapshotInfo]:
        """Return the snapshots that are still held and that the collector calls healthy."""
        job = self._watcher.job
        if job is None:
            return []
        return [info for info in job.ring.inventory() if info.id in job.ring.healthy]
