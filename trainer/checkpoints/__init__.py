"""Durable checkpoints: safetensors and JSON, written atomically by one process or many."""

from trainer.checkpoints.callback import FACTS_KEY, Checkpoints, RandomStates, SnapshotHealth
from trainer.checkpoints.folders import CheckpointError
from trainer.checkpoints.sharded import ShardedStrategy
from trainer.checkpoints.storage import SafeCheckpointIO, read_state
from trainer.checkpoints.store import CheckpointStore, StoredCheckpoint, find_checkpoint

__all__ = [
    "FACTS_KEY",
    "CheckpointError",
    "CheckpointStore",
    "Checkpoints",
    "RandomStates",
    "SafeCheckpointIO",
    "ShardedStrategy",
    "SnapshotHealth",
    "StoredCheckpoint",
    "find_checkpoint",
    "read_state",
]
