"""What can be wrong with a checkpoint."""

from __future__ import annotations

from stabilizer.errors import StabilizerError


class CheckpointError(StabilizerError):
    """A checkpoint could not be written, or what is on storage is none that can be used."""

    code = "checkpoint_unusable"
