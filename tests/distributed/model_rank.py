"""One rank of two that train or shard a small IDEFICS; started by test_model_ranks."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainer.config import OptimizerConfig
from trainer.module import (
    IdeficsModule,
    build_model,
    build_skeleton,
    materialise,
    open_pretrained,
)
from trainer.module.parts import part_of

_KIT = Path(__file__).parents[1] / "unit" / "trainer" / "module" / "conftest.py"
_spec = importlib.util.spec_from_file_location("module_kit", _KIT)
kit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kit)

FROZEN = ["language_layers", "language_norms", "embeddings", "head"]
UNFREEZE = 3
STEPS = 6


class Batches:
    """Another batch on every rank at every step."""

    def __init__(self, rank):
        self.rank = rank

    def __len__(self):
        return 100

    def __iter__(self):
        for step in range(100):
            generator = torch.Generator().manual_seed(2 * step + self.rank)
            ids = torch.randint(2, 52, (2, 8), generator=generator)
            yield {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": ids,
                "pixel_values": torch.randn(2, 1, 3, 8, 8, generator=generator),
                "image_attention_mask": torch.ones(2, 8, 1, dtype=torch.int64),
            }


class Watch(pl.Callback):
    """Sums of the weights by part, after every step."""

    def __init__(self):
        self.sums = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        sums = {}
        for name, parameter in module.model.named_parameters():
            total = parameter.detach().double().abs().sum().item()
            sums[part_of(name)] = sums.get(part_of(name), 0.0) + total
        self.sums.append(sums)


def unfreeze(rank):
    """Train with DDP across the step at which a part begins to learn."""
    change = {"step": UNFREEZE, "parts": ["language_norms"]}
    config = kit.small_config(freeze=FROZEN, unfreeze=[change], gate_initializer="ones")
    torch.manual_seed(0)
    module = IdeficsModule(
        build_model(config),
        OptimizerConfig(learning_rate=1e-2),
        steps=STEPS,
        unfreeze=config.unfreeze,
    )
    watch = Watch()
    pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp",
        max_steps=STEPS, max_epochs=-1, callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, Batches(rank))  # fmt: skip
    return watch.sums


def sharded_start(rank, folder):
    """Shard a skeleton, fill it from files, and train one step in mixed precision."""
    pretrained = {"language": folder, "dtype": "bfloat16"}
    config = kit.small_config(
        pretrained=pretrained, freeze=FROZEN, self_attention_qk_norm="l2", gate_initializer="ones"
    )
    model = build_skeleton(config)
    weights = open_pretrained(config, model)
    mesh = init_device_mesh("cpu", (2,))
    for block in (*model.model.layers, *model.model.gated_cross_attn_layers):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.manual_seed(rank)
    materialise(model, weights, device=torch.device("cpu"))
    whole = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    expected = dict(build_model(config).named_parameters())
    batch = next(iter(Batches(rank)))
    del batch["labels"]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch, use_cache=False).logits
    logits.float().square().mean().backward()
    return {
        "loaded": sorted(weights.names),
        "equal": [name for name in weights.names if torch.equal(whole[name], expected[name])],
        "local": model.model.layers[0].mlp.up_proj.weight.to_local().shape[0],
        "latents": whole["model.perceiver_resampler.latents"].std().item(),
        "alpha": whole["model.gated_cross_attn_layers.0.alpha_dense"].item(),
        "scale": whole["model.layers.0.self_attn.q_layer_norm.scale"].item(),
        "finite": bool(logits.isfinite().all()),
        "learns": sorted({part_of(n) for n, p in model.named_parameters() if p.grad is not None}),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    local_rank = int(os.environ["LOCAL_RANK"])
    report = {"unfreeze": unfreeze(local_rank)}
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=local_rank, world_size=2)
    report["sharded_start"] = sharded_start(local_rank, sys.argv[2])
    dist.destroy_process_group()
    Path(sys.argv[1]).write_text(json.dumps(report))
