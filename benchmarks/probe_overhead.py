"""What probes cost: CPU seconds of a training step without them, at every step, at every tenth.

    OMP_NUM_THREADS=1 python benchmarks/probe_overhead.py [--repetitions 15] [--steps 10]

The model is IDEFICS of about two million parameters with every tower, QK norms and dropout. The
three arms take turns, and it is this process's time on its one thread that counts, so that another
load on the machine does not; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from stabilizer.agent.probes.probe_set import ProbeSet

TEXT_LENGTH = 128
NUM_IMAGES = 4
BATCH_SIZE = 8


def make_model() -> nn.Module:
    torch.manual_seed(0)
    vision = {
        "embed_dim": 96,
        "image_size": 16,
        "patch_size": 4,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    perceiver = {
        "use_resampler": True,
        "resampler_n_latents": 8,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 24,
        "qk_layer_norms_perceiver": True,
    }
    config = IdeficsConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        dropout=0.1,
        cross_layer_interval=2,
        qk_layer_norms=True,
        freeze_text_layers=False,
        freeze_vision_layers=False,
        use_cache=False,
        use_resampler=True,
        vision_config=vision,
        perceiver_config=perceiver,
    )
    model: nn.Module = IdeficsForVisionText2Text(config)
    return model.train()


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 1024, (BATCH_SIZE, TEXT_LENGTH), generator=generator)
    starts = torch.arange(NUM_IMAGES) * (TEXT_LENGTH // NUM_IMAGES)
    seen = torch.arange(TEXT_LENGTH)[:, None] >= starts[None, :]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(BATCH_SIZE, NUM_IMAGES, 3, 16, 16, generator=generator),
        "image_attention_mask": seen.long().expand(BATCH_SIZE, -1, -1),
        "labels": ids,
    }


class Arm:
    """A model in training, measured at every `every`-th step; None for never."""

    def __init__(self, every: int | None) -> None:
        self.model = make_model()
        self.batch = make_batch()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.every = every
        self.probes = ProbeSet(self.model)
        self.step = 0
        self.seconds: list[float] = []
        if every is not None:
            self.probes.attach()

    def run(self, steps: int) -> None:
        """Train some steps and keep the mean CPU seconds of a step."""
        start = time.process_time()
        for _ in range(steps):
            self._train()
        self.seconds.append((time.process_time() - start) / steps)

    def _train(self) -> None:
        self.step += 1
        if self.every is not None:
            self.probes.begin_step(self.step % self.every == 0)
        loss = self.model(**self.batch).loss
        loss.backward()
        if self.every is not None:
            self.probes.log("loss", loss)
            self.probes.after_backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.every is not None:
            self.probes.end_step(self.step, 0.0).blocks()  # the sender's share, counted in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps of a repetition")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = {"off": Arm(None), "every 10 steps": Arm(10), "every step": Arm(1)}
    for arm in arms.values():
        arm.run(2)  # warms allocators and caches up
        arm.seconds.clear()
    for _ in range(arguments.repetitions):
        for arm in arms.values():
            arm.run(arguments.steps)
    report(arms)


def report(arms: dict[str, Arm]) -> None:
    model = arms["off"].model
    modules = arms["every step"].probes.catalogs[1]
    count = sum(parameter.numel() for parameter in model.parameters())
    console = Console()
    console.print(
        f"IDEFICS, {count:,} parameters, {len(modules)} series of modules,"
        f" batch {BATCH_SIZE} x {TEXT_LENGTH}, one thread"
    )
    table = Table("probes", "step, CPU ms (median)", "ratio", "ratio, pairwise")
    base = statistics.median(arms["off"].seconds)
    for name, arm in arms.items():
        median = statistics.median(arm.seconds)
        pairs = [a / b for a, b in zip(arm.seconds, arms["off"].seconds, strict=True)]
        table.add_row(
            name, f"{1e3 * median:.2f}", f"{median / base:.3f}", f"{statistics.median(pairs):.3f}"
        )
    console.print(table)


if __name__ == "__main__":
    main()
