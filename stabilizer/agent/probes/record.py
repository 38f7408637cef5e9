"""One vector per step, its single copy to the host, and the frames that are read from it.

The device is only asked to lay small results side by side. What remains of the arithmetic (roots,
means over microbatches, quotients) is done here on the host, from the copied numbers, by the thread
that sends them.


How each metric follows from the numbers that were copied from the device.

Microbatches of a step are put together here: means are averaged, root mean squares are taken over
all values, a maximum stays the maximum. NaN goes through all of them.


What has been measured in the step that is under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.series import Catalog

Float64Array = npt.NDArray[np.float64]


class Slot(NamedTuple):
    """Where a value goes: a catalog of the step and a column in it."""

    catalog: int
    column: int


class Reading(Protocol):
    """How values of series follow from the parts of a step's vector."""

    def read(self, parts: Sequence[Float64Array]) -> Sequence[tuple[Slot, float]]:
        """Return the values; what is left out is absent from the frame."""
        ...


class HostCopy:
    """The parts of a step on their way to the host.

    Parts on an accelerator are joined there and copied at once into pinned memory, without waiting;
    parts that lie on the host already are joined there.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._sizes = [part.numel() for part in parts]
        self._on_host = [part.device.type == "cpu" for part in parts]
        host = [part for part, on_host in zip(parts, self._on_host, strict=True) if on_host]
        away = [part for part, on_host in zip(parts, self._on_host, strict=True) if not on_host]
        self._host = _joined(host)
        self._copied, self._event = _begin_copy(_joined(away))

    def wait(self) -> list[Float64Array]:
        """Return the parts, in their order, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        sources = {True: _as_float64(self._host), False: _as_float64(self._copied)}
        taken = {True: 0, False: 0}
        parts = []
        for size, on_host in zip(self._sizes, self._on_host, strict=True):
            start = taken[on_host]
            taken[on_host] = start + size
            parts.append(sources[on_host][start : start + size])
        return parts


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    if not parts:
        return None
    device = parts[0].device
    moved = [
        part if part.device == device else part.to(device, non_blocking=True) for part in parts
    ]
    return torch.cat([part.reshape(-1) for part in moved])


def _begin_copy(vector: Tensor | None) -> tuple[Tensor | None, torch.cuda.Event | None]:
    if vector is None or vector.device.type != "cuda":
        return (None if vector is None else vector.cpu()), None
    with torch.cuda.device(vector.device):
        target = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
        target.copy_(vector, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # untyped in torch
        event.record()
    return target, event


def _as_float64(tensor: Tensor | None) -> Float64Array:
    return np.empty(0) if tensor is None else tensor.numpy().astype(np.float64)


@dataclass(slots=True, eq=False)
class PendingFrames:
    """What was measured at one step, perhaps still on its way from the device.

    Args:
        step: Completed optimizer steps.
        time: Seconds since the epoch.
        catalogs: Catalogs of this step, by the index that slots name.
        readings: How the values follow; a later one overrides an earlier one's.
    """

    step: int
    time: float
    catalogs: Sequence[Catalog | None]
    readings: Sequence[Reading]
    copy: HostCopy = field(repr=False)

    def blocks(self) -> list[tuple[Catalog, FrameBlock]]:
        """Wait for the copy, and only here; return one frame for each catalog with a value."""
        parts = self.copy.wait()
        frames = [
            None if catalog is None else (np.zeros(len(catalog)), np.zeros(len(catalog), np.bool_))
            for catalog in self.catalogs
        ]
        for reading in self.readings:
            for slot, value in reading.read(parts):
                frame = frames[slot.catalog]
                if frame is not None:
                    frame[0][slot.column] = value
                    frame[1][slot.column] = True
        return [
            (catalog, self._block(catalog, *frame))
            for catalog, frame in zip(self.catalogs, frames, strict=True)
            if catalog is not None and frame is not None and frame[1].any()
        ]

    def _block(
        self, catalog: Catalog, values: Float64Array, present: npt.NDArray[np.bool_]
    ) -> FrameBlock:
        with np.errstate(over="ignore"):  # beyond float32 is Inf, which is data
            narrow = values.astype(np.float32)
        return FrameBlock(
            catalog=catalog.id,
            steps=np.array([self.step], np.int64),
            times=np.array([self.time], np.float64),
            values=narrow[None],
            present=None if present.all() else present[None],
        )


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of what was given for a series: parts of one number, and numbers of the host."""

    slot: Slot
    parts: Sequence[int] = ()
    numbers: Sequence[float] = ()

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the mean."""
        values = [*self.numbers, *(float(parts[index][0]) for index in self.parts)]
        return [(self.slot, sum(values) / len(values))] if values else []


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """From L2 norms and the numbers of elements they were taken over."""

    slot: Slot
    parts: Sequence[int]
    elements: Sequence[int]

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return sqrt(mean(x^2)) over all elements of all microbatches."""
        norms = [float(parts[index][0]) for index in self.parts]
        squares = sum(norm * norm for norm in norms)
        return [(self.slot, math.sqrt(squares / sum(self.elements)))]


@dataclass(frozen=True, slots=True)
class GradientNorms:
    """From the norm of every parameter's gradient.

    Args:
        part: The part with one norm per parameter.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        groups: For each module its slot and the positions of its parameters in the part.
        scale: A loss scaler's factor, which the gradients still carry: a number, or ...
        scale_part: ... the part that holds it.
    """

    part: int
    whole: Slot
    nonfinite: Slot
    groups: Sequence[tuple[Slot, Sequence[int]]] = ()
    scale: float = 1.0
    scale_part: int | None = None

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the global norm, the number of broken gradients, and the modules' norms."""
        raw = parts[self.part]
        scale = self.scale if self.scale_part is None else float(parts[self.scale_part][0])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # NaN and Inf are data
            norms = raw / np.float64(scale)
            squares = norms * norms
        values = [
            (self.whole, math.sqrt(squares.sum())),
            (self.nonfinite, float(np.count_nonzero(~np.isfinite(raw)))),
        ]
        plain = squares.tolist()
        for slot, positions in self.groups:
            values.append((slot, math.sqrt(sum(plain[position] for position in positions))))
        return values


@dataclass(frozen=True, slots=True)
class AttentionSummaries:
    """From the sums of `attention.summarize`, one part for each microbatch."""

    entropy_min: Slot
    entropy_mean: Slot
    logit_max: Slot
    parts: Sequence[int]

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the worst head's and the mean entropy, and the largest logit.

        Without a query that sees two keys there is no entropy, without a visible key no logit.
        """
        summaries = [parts[index] for index in self.parts]
        heads = (len(summaries[0]) - 2) // 2
        total = np.sum([summary[: 2 * heads] for summary in summaries], axis=0)
        sums, counts = total[:heads], total[heads:]
        values = []
        if counts.any():
            entropies = sums[counts > 0] / counts[counts > 0]
            values.append((self.entropy_min, float(entropies.min())))
            values.append((self.entropy_mean, float(entropies.mean())))
        logits = [float(summary[-2]) for summary in summaries if summary[-1] > 0]
        if logits:
            values.append((self.logit_max, float(np.max(logits))))
        return values


AttentionSlots = tuple[Slot, Slot, Slot]
"""Slots of the worst head's entropy, the mean entropy and the largest logit."""


@dataclass(slots=True)
class _Given:
    parts: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Norms:
    parts: list[int] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)


class StepRecord:
    """Small tensors of one step on their devices, and how its series follow from them.

    Nothing is computed here and nothing waits; a tensor handed in must not change afterwards.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._norms: dict[Slot, _Norms] = {}
        self._measured: dict[Slot, _Given] = {}
        self._logged: dict[Slot, _Given] = {}
        self._attention: dict[AttentionSlots, list[int]] = {}
        self._gradients: GradientNorms | None = None

    def add_norm(self, slot: Slot, norm: Tensor, elements: int) -> None:
        """Add the L2 norm of a microbatch's values, for their root mean square."""
        norms = self._norms.setdefault(slot, _Norms())
        norms.parts.append(self._add(norm))
        norms.elements.append(elements)

    def add_value(self, slot: Slot, value: Tensor) -> None:
        """Add what we have measured in a microbatch; shape []."""
        self._measured.setdefault(slot, _Given()).parts.append(self._add(value))

    def add_attention(self, slots: AttentionSlots, summary: Tensor) -> None:
        """Add a microbatch's summary of an attention."""
        self._attention.setdefault(slots, []).append(self._add(summary))

    def log(self, slot: Slot, value: Tensor | float) -> None:
        """Add what the job has given; it goes before what we have measured of the same series.

        Raises:
            ValueError: The value is not one number.
        """
        given = self._logged.setdefault(slot, _Given())
        if not isinstance(value, Tensor):
            given.numbers.append(float(value))
        elif value.numel() != 1 or value.is_meta or hasattr(value, "to_local"):
            raise ValueError(
                f"a logged value has shape {tuple(value.shape)}; allowed: an ordinary tensor with"
                " one element, or a number"
            )
        else:  # copied, since a job may add to its own tensor before the step ends
            copied = value.detach().to(torch.float32, copy=True)
            given.parts.append(self._add(copied))

    def set_gradients(
        self,
        norms: Tensor,
        slots: tuple[Slot, Slot],
        groups: Iterable[tuple[Slot, Sequence[int]]],
        scale: Tensor | float | None,
    ) -> None:
        """Set the norm of every parameter's gradient, shape [P], with the factor they carry.

        Args:
            norms: One for each parameter with a gradient.
            slots: Of the global norm, and of the number of broken gradients.
            groups: Slot and positions in `norms` for each module.
            scale: What to divide by; a tensor stays on its device.
        """
        part = self._add(norms)
        scale_part = None
        if isinstance(scale, Tensor):  # copied, since the scaler changes it in place
            scale_part = self._add(scale.detach().to(torch.float32, copy=True))
        number = float(scale) if scale is not None and scale_part is None else 1.0
        self._gradients = GradientNorms(part, *slots, tuple(groups), number, scale_part)

    def readings(self) -> list[Reading]:
        """Return how the series follow from `parts`; what the job has given comes last."""
        readings: list[Reading] = [
            RootMeanSquare(slot, norms.parts, norms.elements) for slot, norms in self._norms.items()
        ]
        readings += [AttentionSummaries(*slots, parts) for slots, parts in self._attention.items()]
        if self._gradients is not None:
            readings.append(self._gradients)
        for given in (self._measured, self._logged):
            readings += [Mean(slot, each.parts, each.numbers) for slot, each in given.items()]
        return readings

    def _add(self, tensor: Tensor) -> int:
        self.parts.append(tensor.detach())
        return len(self.parts) - 1
