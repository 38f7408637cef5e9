"""Devices, precision and processes: from the configuration to a Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.optim import Optimizer
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.checkpoints import SafeCheckpointIO, ShardedStrategy
from trainer.config import TrainingConfig

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Devices:
    """Where a run trains."""

    device: Device
    """Kind of device."""
    processes: int
    """Of the whole run."""
    is_sharded: bool
    """Whether each process holds a part of the model."""

    def trainer_options(self, config: TrainingConfig) -> dict[str, Any]:
        """Return the options for Lightning's Trainer."""
        plugins: list[Any] = [] if self.is_sharded else [SafeCheckpointIO()]
        if config.precision == "bf16":
            plugins.append(Bf16Precision(self.device))
        if config.precision == "fp16":
            scaler = torch.amp.GradScaler(self.device)
            plugins.append(MixedPrecision("16-mixed", self.device, scaler=scaler))
        return {
            "accelerator": self.device,
            "devices": config.devices,
            "num_nodes": config.nodes,
            "strategy": self._strategy(),
            "plugins": plugins,
            "deterministic": config.deterministic,
        }

    def _strategy(self) -> str | Strategy:
        if self.is_sharded:
            return ShardedStrategy(self.processes)
        return DDPStrategy() if self.processes > 1 else "auto"


def choose_devices(config: TrainingConfig) -> Devices:
    """Check that this machine has the configured devices.

    Raises:
        ConfigurationError: It does not.
    """
    device = _device(config)
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigurationError(
            f"training.devices: {config.devices} cannot be used; allowed: at most the "
            f"{torch.cuda.device_count()} GPUs of this machine"
        )
    if config.precision == "fp16" and device == "cpu":
        _try_fp16_on_cpu()
    return Devices(device, config.processes, config.strategy == "fsdp2")


def _device(config: TrainingConfig) -> Device:
    if config.accelerator == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if config.accelerator == "cuda":
        raise ConfigurationError(
            "training.accelerator: 'cuda' cannot be used; allowed: auto or cpu, since torch sees "
            "no GPU here"
        )
    return "cpu"


def _try_fp16_on_cpu() -> None:
    """Multiply two small matrices: some CPUs and builds of torch have no fp16."""
    try:
        with torch.autocast("cpu", dtype=torch.float16):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
    except RuntimeError as error:
        raise ConfigurationError(
            "training.precision: 'fp16' cannot be used on this CPU; allowed: fp32 or bf16, or a "
            f"GPU ({error})"
        ) from error
    if product.dtype != torch.float16:
        raise ConfigurationError(
            "training.precision: 'fp16' cannot be used on this CPU; allowed: fp32 or bf16, or a GPU"
        )


class Bf16Precision(MixedPrecision):
    """Products in bf16, without a loss scaler.

    Lightning refuses to clip the gradients of a fused optimizer in any mixed precision, since such
    an optimizer unscales them itself; without a scaler there is nothing to unscale.
    """

    def __init__(self, device: Device) -> None:
        """Compute on a kind of device."""
        super().__init__("bf16-mixed", device)

    @override
    def clip_gradients(self, optimizer: Optimizer, *args: Any, **options: Any) -> None:
        """Clip as in full precision."""
        Precision.clip_gradients(self, optimizer, *args, **options)
