"""Checks of a batch before it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from stabilizer.errors import ConflictError, InvalidInputError
from stabilizer.protocol.batches import BatchHeader, SnapshotInfo
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.series import Catalog

MAX_STEP: Final = 2**53
MAX_CATALOGS: Final = 2000
"""Limit per run, against jobs that put a value into a label."""


def check_blocks(blocks: Sequence[FrameBlock], widths: Mapping[str, int], from_step: int) -> None:
    """Check that blocks fit their catalogs and their attempt.

    Args:
        blocks: Of one batch.
        widths: Number of series of each catalog that the run has.
        from_step: First step of the attempt.

    Raises:
        ConflictError: A catalog is not known; code `unknown_catalog`.
        InvalidInputError: Codes `catalog_mismatch`, `step_out_of_order`, `malformed_batch`.
    """
    for index, block in enumerate(blocks):
        field = f"blocks.{index}"
        width = widths.get(block.catalog)
        if width is None:
            raise ConflictError(
                f"{field}.catalog {block.catalog} is not known to this run; send its series first",
                code="unknown_catalog",
            )
        _check_shapes(field, block, width)
        _check_steps(field, block, from_step)


def _check_shapes(field: str, block: FrameBlock, width: int) -> None:
    shape = block.values.shape
    if len(shape) != 2 or shape[1] != width:
        raise InvalidInputError(
            f"{field} has values of shape {list(shape)}; its catalog has {width} series",
            field=f"{field}.values",
            value=list(shape),
            allowed=f"{width} values in each frame",
            code="catalog_mismatch",
        )
    num_frames = shape[0]
    fits = block.steps.shape == (num_frames,) and block.times.shape == (num_frames,)
    if not fits or (block.present is not None and block.present.shape != shape):
        raise InvalidInputError(
            f"{field} has steps, times and presence of other shapes than its {num_frames} frames",
            field=field,
            allowed="one step and one time for each frame, one presence bit for each value",
            code="malformed_batch",
        )
    if not np.isfinite(block.times).all():
        raise InvalidInputError(
            f"{field}.times has values that are not finite",
            field=f"{field}.times",
            allowed="seconds since the epoch",
            code="malformed_batch",
        )


def _check_steps(field: str, block: FrameBlock, from_step: int) -> None:
    if not len(block):
        return
    first, last = int(block.steps[0]), int(block.steps.max())
    if bool((np.diff(block.steps) < 0).any()):
        at = int(np.flatnonzero(np.diff(block.steps) < 0)[0]) + 1
        raise _bad_step(f"{field}.steps.{at}", int(block.steps[at]), "steps that do not descend")
    if first < from_step:
        raise _bad_step(f"{field}.steps.0", first, f"at least {from_step}, where the attempt began")
    if last > MAX_STEP:
        raise _bad_step(f"{field}.steps", last, f"at most {MAX_STEP}")


def _bad_step(field: str, value: int, allowed: str) -> InvalidInputError:
    return InvalidInputError(
        f"{field} is {value}; allowed: {allowed}",
        field=field,
        value=value,
        allowed=allowed,
        code="step_out_of_order",
    )


def check_header(header: BatchHeader) -> None:
    """Check the header of a batch.

    Raises:
        InvalidInputError: A snapshot occurs twice, or the parent is not an earlier attempt.
    """
    check_snapshots(header.snapshots or ())
    attempt, start = header.attempt, header.attempt_start
    if attempt is None or start is None or start.parent is None:
        return
    if start.parent >= attempt:
        raise InvalidInputError(
            f"attempt_start.parent is {start.parent}; allowed: an attempt before {attempt}",
            field="attempt_start.parent",
            value=start.parent,
            allowed=f"1 to {attempt - 1}",
        )


def check_snapshots(snapshots: Sequence[SnapshotInfo]) -> None:
    """Check a list of snapshots.

    Raises:
        InvalidInputError: Two snapshots have the same id.
    """
    seen: set[str] = set()
    for index, snapshot in enumerate(snapshots):
        if snapshot.id in seen or "\x00" in snapshot.id:
            raise InvalidInputError(
                f"snapshots.{index}.id is {snapshot.id!r}; allowed: each id once, without NUL",
                field=f"snapshots.{index}.id",
                value=snapshot.id,
                allowed="each id once, without NUL",
            )
        seen.add(snapshot.id)


def check_catalogs(catalogs: Sequence[Catalog], num_known: int) -> None:
    """Check catalogs before they are stored.

    Raises:
        InvalidInputError: A label contains NUL, which databases refuse; or there are too many.
    """
    if num_known + len(catalogs) > MAX_CATALOGS:
        raise InvalidInputError(
            f"the run would have {num_known + len(catalogs)} catalogs; allowed: {MAX_CATALOGS}; "
            "is a value used as a label?",
            field="catalogs",
            value=num_known + len(catalogs),
            allowed=f"at most {MAX_CATALOGS} for a run",
            code="too_many_catalogs",
        )
    for index, catalog in enumerate(catalogs):
        for slot, key in enumerate(catalog.series):
            if any("\x00" in value for value in key.labels.values()):
                raise InvalidInputError(
                    f"catalogs.{index}.series.{slot} has a label with the character NUL",
                    field=f"catalogs.{index}.series.{slot}.labels",
                    value=str(key),
                    allowed="labels without NUL",
                )
