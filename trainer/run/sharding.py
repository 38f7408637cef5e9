"""The model in parts: FSDP2 over the layers of all towers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from typing_extensions import override

from trainer.module import IdeficsModule, PretrainedWeights, materialise

_LAYERS = (
    "IdeficsDecoderLayer",
    "IdeficsGatedCrossAttentionLayer",
    "IdeficsVisionEncoderLayer",
    "IdeficsPerceiverResampler",
)
"""Classes of transformers whose weights are gathered and freed together."""


class ShardedIdeficsModule(IdeficsModule):
    """IDEFICS that is sharded when Lightning asks for it, before the optimizer is made.

    A model that was built whole is cut into its shards. A skeleton on the meta device is cut first
    and filled then, so that no process ever holds more than one layer and its own shards.
    """

    weights: PretrainedWeights | None = None
    """What a skeleton is filled with."""
    _is_sharded = False

    @override
    def configure_model(self) -> None:
        """Shard, once."""
        if self._is_sharded:
            return
        self._is_sharded = True
        mesh: Any = self.device_mesh
        shard(self.model, mesh["data_parallel"] if isinstance(mesh, DeviceMesh) else mesh)
        if next(self.model.parameters()).is_meta:
            materialise(self.model, self.weights, device=self.trainer.strategy.root_device)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every layer, and what lies between them, over a mesh, in place."""
    for module in model.modules():
        if type(module).__name__ in _LAYERS:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
