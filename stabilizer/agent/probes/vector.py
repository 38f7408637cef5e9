"""One vector per step, its single copy to the host, and the frames that are read from it.

The device is only asked to lay small results side by side. What remains of the arithmetic (roots,
means over microbatches, quotients) is done here on the host, from the copied numbers, by the thread
that sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
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
