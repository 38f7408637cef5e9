"""A brain in memory, fed one batch at a time: used by the collector, and by a job without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from stabilizer.protocol.batches import Marker
from stabilizer.protocol.frames import FrameBlock
from stabilizer.rules.brain import Brain
from stabilizer.rules.outcome import Outcome, PolicyContext

ContextAt = Callable[[int], PolicyContext]
"""Returns the policy's context at a step."""
Record = Callable[[Outcome], None]
"""Takes each outcome that is not empty, in the order in which they happen."""


@dataclass(slots=True)
class LoadedBrain:
    """The brain of one run and the position up to which it has seen the run."""

    brain: Brain
    context: PolicyContext
    """As of the last policy step."""
    seen: dict[str, int] = field(default_factory=dict)
    """Last step evaluated, by catalog."""
    steps_since_save: int = 0
    is_dirty: bool = False
    """Must be saved in this transaction."""

    def show(
        self,
        blocks: Sequence[FrameBlock],
        markers: Sequence[Marker],
        context_at: ContextAt,
        record: Record,
    ) -> None:
        """Evaluate a batch: for each step its markers, then all catalogs, then the policy.

        Args:
            blocks: Frames; those of earlier steps are left out.
            markers: Events; each comes before the first frame at or after its step.
            context_at: The policy's context at each step.
            record: Called with what each step changed.
        """
        waiting = sorted(markers, key=lambda marker: marker.step, reverse=True)
        for step, frames in _frames_by_step(blocks):
            while waiting and waiting[-1].step <= step:
                self.brain.marker(waiting.pop())
            if self._observe(step, frames, record):
                self._decide(step, context_at(step), record)
        for marker in reversed(waiting):
            self.brain.marker(marker)

    def _observe(self, step: int, frames: Sequence[tuple[FrameBlock, int]], record: Record) -> bool:
        """Evaluate the new frames of a step; return whether there were any."""
        any_new = False
        for block, index in frames:
            if not self._is_new(block.catalog, step):
                continue
            present = None if block.present is None else block.present[index]
            outcome = self.brain.observe(block.catalog, step, block.values[index], present)
            self.seen[block.catalog] = step
            any_new = True
            self._take(outcome, record)
        return any_new

    def _is_new(self, catalog: str, step: int) -> bool:
        """Return whether a frame may be evaluated: the rules never go back.

        A second catalog may arrive late for the current step, but none for an earlier step.
        """
        return step > self.seen.get(catalog, -1) and step >= max(self.seen.values(), default=-1)

    def _decide(self, step: int, context: PolicyContext, record: Record) -> None:
        if context != self.context:
            self.context, self.is_dirty = context, True
        self._take(self.brain.decide(step, context), record)
        self.steps_since_save += 1

    def _take(self, outcome: Outcome, record: Record) -> None:
        if outcome:
            self.is_dirty = True
            record(outcome)


def _frames_by_step(
    blocks: Sequence[FrameBlock],
) -> Iterator[tuple[int, list[tuple[FrameBlock, int]]]]:
    """Yield each step with its frames as (block, index), in the order of the blocks."""
    frames = [
        (step, index, block) for block in blocks for index, step in enumerate(block.steps.tolist())
    ]
    frames.sort(key=itemgetter(0))  # stable: blocks keep their order
    for step, group in groupby(frames, key=itemgetter(0)):
        yield step, [(block, index) for _, index, block in group]
