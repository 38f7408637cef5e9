"""The measurements of one step: kept on the device, copied to the host once, read as frames.

`StepRecord` collects small tensors on their devices. `HostCopy` joins them there and copies them to
the host without waiting. `PendingFrames` reads the series from the copied numbers, in the thread
that sends them: what is left of the arithmetic (roots, quotients, means over microbatches) runs on
the host. Over the microbatches of a step, means are averaged, root mean squares are taken over all
values, and a maximum stays the maximum. NaN propagates through all of them.
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
    """Position of a value: a catalog of the step and a column in it."""

    catalog: int
    column: int


class Reading(Protocol):
    """Computes values of series from the parts of a step's vector."""

    def read(self, parts: Sequence[Float64Array]) -> Sequence[tuple[Slot, float]]:
        """Return the values; series not returned are absent from the frame."""
        ...


class HostCopy:
    """An asynchronous copy of a step's parts to the host.

    Parts on an accelerator are joined there and copied together into pinned memory, without
    waiting; parts on the host are joined on the host.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._sizes = [part.numel() for part in parts]
        self._on_host = [part.device.type == "cpu" for part in parts]
        host = [part for part, on_host in zip(parts, self._on_host, strict=True) if on_host]
        away = [part for part, on_host in zip(parts, self._on_host, strict=True) if not on_host]
        self._host = _joined(host)
        self._copied, self._event = _begin_copy(_joined(away))

    def wait(self) -> list[Float64Array]:
        """Wait for the copy; return the parts in their order."""
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
    """The frames of one step, whose values may still be on their way from the device.

    Args:
        step: Completed optimizer steps.
        time: Seconds since the epoch.
        catalogs: Catalogs of this step, indexed by `Slot.catalog`.
        readings: Compute the values; later ones override earlier ones.
    """

    step: int
    time: float
    catalogs: Sequence[Catalog | None]
    readings: Sequence[Reading]
    copy: HostCopy = field(repr=False)

    def blocks(self) -> list[tuple[Catalog, FrameBlock]]:
        """Wait for the copy; return one frame for each catalog with a value."""
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
    """Mean of a series' values: parts of one number, and numbers on the host."""

    slot: Slot
    parts: Sequence[int] = ()
    numbers: Sequence[float] = ()

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the mean."""
        values = [*self.numbers, *(float(parts[index][0]) for index in self.parts)]
        return [(self.slot, sum(values) / len(values))] if values else []


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """Root mean square, from L2 norms and their numbers of elements."""

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
    """Gradient norms, from the norm of every parameter's gradient.

    Args:
        part: The part with one norm per parameter.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        groups: For each module its slot and the positions of its parameters in the part.
        scale: A loss scaler's factor that the gradients still carry, as a number.
        scale_part: The part with that factor, if it is on a device.
    """

    part: int
    whole: Slot
    nonfinite: Slot
    groups: Sequence[tuple[Slot, Sequence[int]]] = ()
    scale: float = 1.0
    scale_part: int | None = None

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the global norm, the number of non-finite gradients, and the modules' norms."""
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
    """Attention statistics, from the sums of `attention.summarize`, one part per microbatch."""

    entropy_min: Slot
    entropy_mean: Slot
    logit_max: Slot
    parts: Sequence[int]

    def read(self, parts: Sequence[Float64Array]) -> list[tuple[Slot, float]]:
        """Return the worst head's entropy, the mean entropy, and the largest logit.

        There is no entropy without a query that sees two keys, and no logit without a visible key.
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
class _Values:
    parts: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Norms:
    parts: list[int] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)


class StepRecord:
    """Collects the small tensors of one step, on their devices.

    Computes nothing and waits for nothing; a tensor must not change after it was added.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._norms: dict[Slot, _Norms] = {}
        self._measured: dict[Slot, _Values] = {}
        self._logged: dict[Slot, _Values] = {}
        self._attention: dict[AttentionSlots, list[int]] = {}
        self._gradients: GradientNorms | None = None

    def add_norm(self, slot: Slot, norm: Tensor, elements: int) -> None:
        """Add the L2 norm of a microbatch's values, for their root mean square."""
        norms = self._norms.setdefault(slot, _Norms())
        norms.parts.append(self._add(norm))
        norms.elements.append(elements)

    def add_value(self, slot: Slot, value: Tensor) -> None:
        """Add a value measured in a microbatch; shape []."""
        self._measured.setdefault(slot, _Values()).parts.append(self._add(value))

    def add_attention(self, slots: AttentionSlots, summary: Tensor) -> None:
        """Add a microbatch's summary of an attention."""
        self._attention.setdefault(slots, []).append(self._add(summary))

    def log(self, slot: Slot, value: Tensor | float) -> None:
        """Add a value logged by the job; it replaces our own measurement of the same series.

        Raises:
            ValueError: The value is not one number.
        """
        logged = self._logged.setdefault(slot, _Values())
        if not isinstance(value, Tensor):
            logged.numbers.append(float(value))
        elif value.numel() != 1 or value.is_meta or hasattr(value, "to_local"):
            raise ValueError(
                f"a logged value has shape {tuple(value.shape)}; allowed: an ordinary tensor with"
                " one element, or a number"
            )
        else:  # copied: the job may change its tensor before the step ends
            copied = value.detach().to(torch.float32, copy=True)
            logged.parts.append(self._add(copied))

    def set_gradients(
        self,
        norms: Tensor,
        slots: tuple[Slot, Slot],
        groups: Iterable[tuple[Slot, Sequence[int]]],
        scale: Tensor | float | None,
    ) -> None:
        """Set the gradient norms.

        Args:
            norms: One for each parameter with a gradient, shape [P].
            slots: Slots of the global norm and of the number of non-finite gradients.
            groups: Slot and positions in `norms` for each module.
            scale: Divisor of the norms; a tensor stays on its device.
        """
        part = self._add(norms)
        scale_part = None
        if isinstance(scale, Tensor):  # copied: the scaler changes it in place
            scale_part = self._add(scale.detach().to(torch.float32, copy=True))
        number = float(scale) if scale is not None and scale_part is None else 1.0
        self._gradients = GradientNorms(part, *slots, tuple(groups), number, scale_part)

    def readings(self) -> list[Reading]:
        """Return how to compute the series from `parts`; logged values come last."""
        readings: list[Reading] = [
            RootMeanSquare(slot, norms.parts, norms.elements) for slot, norms in self._norms.items()
        ]
        readings += [AttentionSummaries(*slots, parts) for slots, parts in self._attention.items()]
        if self._gradients is not None:
            readings.append(self._gradients)
        for values in (self._measured, self._logged):
            readings += [Mean(slot, each.parts, each.numbers) for slot, each in values.items()]
        return readings

    def _add(self, tensor: Tensor) -> int:
        self.parts.append(tensor.detach())
        return len(self.parts) - 1
