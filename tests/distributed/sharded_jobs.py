"""Small sharded models, and callbacks that disturb one rank of them, for the scripts of ranks."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.utils.data import DataLoader, DistributedSampler

_KIT = Path(__file__).parents[1] / "integration" / "rewind" / "conftest.py"
_spec = importlib.util.spec_from_file_location("rewind_kit", _KIT)
kit = importlib.util.module_from_spec(_spec)
sys.modules["rewind_kit"] = kit
_spec.loader.exec_module(kit)
kit.job_module._CLOSE_SECONDS = 0.2  # no collector receives the rest at the end


def watcher(trainer):
    """The agent's callback."""
    return next(each for each in trainer.callbacks if isinstance(each, kit.StabilizerCallback))


def local(tensor):
    """What this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ShardedNet(kit.Net):
    """The kit's net under FSDP2: even and uneven shards, some empty, and a frozen layer."""

    is_sharded = False

    def configure_model(self):
        if not self.is_sharded:
            self.is_sharded = True
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh):
        for part in (self.body[0], self.body, self.frozen, self.head):
            fully_shard(part, mesh=mesh)


class PendingNet(ShardedNet):
    """Has a tensor whose sum over the ranks is pending."""

    def shard(self, mesh):
        super().shard(mesh)
        extra = DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False)
        self.extra = nn.Parameter(extra, requires_grad=False)


class Core(nn.Module):
    """Five rows over two ranks, one row over two ranks, and weights without a gradient."""

    def __init__(self):
        super().__init__()
        fc1, fc2 = nn.Linear(kit.FEATURES, 8), nn.Linear(8, 5)
        self.layers = nn.ModuleList([nn.ModuleDict({"fc1": fc1, "fc2": fc2})])
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 2)
        self.unused = nn.Linear(2, 1)

    def forward(self, x):
        layer = self.layers[0]
        return self.head(self.norm(layer["fc2"](layer["fc1"](x).relu()))).mean(dim=1)


class PlainNet(pl.LightningModule):
    """A deterministic net whose ranks train exactly as one process with the batch of all."""

    def __init__(self):
        super().__init__()
        self.core = Core()
        self.history = []

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        loss = nn.functional.mse_loss(self.core(x), y)
        self.history.append((self.global_step, (), loss.item()))
        return loss

    def validation_step(self, batch, batch_idx):
        """Not run; Lightning warns without it."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, foreach=False)


class ShardedPlainNet(PlainNet):
    """The deterministic net under FSDP2."""

    is_sharded = False

    def configure_model(self):
        if not self.is_sharded:
            self.is_sharded = True
            self.shard(self.device_mesh)

    def shard(self, mesh):
        fully_shard(self.core.layers[0]["fc2"], mesh=mesh["data_parallel"])
        fully_shard(self.core, mesh=mesh["data_parallel"])


class NanInOneShard(pl.Callback):
    """Rank 1's shard of a weight is NaN when a snapshot is taken, and only then."""

    kept = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 6 and trainer.global_rank == 1 and self.kept is None:
            weight = local(module.body[0].weight.detach())
            self.kept = weight.clone()
            weight.fill_(float("nan"))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 6 and self.kept is not None:
            local(module.body[0].weight.detach()).copy_(self.kept)


class NanGradient(pl.Callback):
    """Rank 1's shard of a gradient is NaN at step 5."""

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            weight = next(module.parameters())
            local(weight.grad)[0, 0] = float("nan")


class OtherLayout(pl.Callback):
    """On rank 1, a weight of every snapshot has another layout than the model's."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 6 and trainer.global_rank == 1:
            for snapshot in watcher(trainer).job.ring._snapshots:
                if snapshot.state is not None:
                    held = snapshot.state.trainer.tree["module"]["parameters"]
                    held["head.weight"] = replace(held["head.weight"], layout=None)


class Frames(pl.Callback):
    """What the job would send: the values of every step by metric and module."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.steps and trainer.global_rank == 0:
            watcher(trainer).job._telemetry.put = self._put

    def _put(self, frames):
        values = {}
        for catalog, block in frames.blocks():
            present = block.present[0] if block.present is not None else [True] * len(catalog)
            for key, value, is_present in zip(
                catalog.series, block.values[0], present, strict=True
            ):
                if is_present:
                    values[key.metric + "/" + key.labels.get("module", "")] = float(value)
        self.steps.append(values)


def train_plain(net, *, part=0, parts=1, callbacks=(), **options):
    """Train the deterministic net for 10 steps; return the run and the gradient norms of each.

    The parts of the data, in each step, are together what one process reads.
    """
    frames, points = Frames(), kit.Points(80)
    sampler = DistributedSampler(points, parts, part, shuffle=False)
    ran = kit.train(
        DataLoader(points, batch_size=8 // parts, sampler=sampler),
        net=net,
        callbacks=[*callbacks, frames],
        snapshot_every=2,
        accumulate_grad_batches=1,
        max_epochs=1,
        val=False,
        use_distributed_sampler=False,
        **options,
    )
    wanted = ("grad_norm", "nonfinite")
    return ran, [
        {name: value for name, value in step.items() if name.startswith(wanted)}
        for step in frames.steps
    ]
