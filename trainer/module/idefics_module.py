"""The Lightning module: forward, losses, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import IdeficsForVisionText2Text
from typing_extensions import override

from trainer.config import OptimizerConfig, UnfreezeConfig
from trainer.module.losses import DocumentLosses, TokenLosses, reduce_losses, token_losses
from trainer.module.optimization import build_optimizer, build_schedule
from trainer.module.parts import UnfreezeSchedule


class Inputs(TypedDict):
    """The fields of a batch that the module reads.

    Shape letters: B batch, S sequence, I pictures, C colours, H, W image size, D documents. The
    optional fields are for reporting; a sequence may hold several documents.
    """

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64; 0 at padding
    labels: Tensor  # [B, S] int64, not shifted; -100 where nothing is predicted
    pixel_values: Tensor  # [B, I, C, H, W] float32
    image_attention_mask: Tensor  # [B, S, I] int64; 1 where the token sees the picture
    source_ids: NotRequired[Tensor]  # [B, S] int64, index into source_names; -1 at padding
    source_names: NotRequired[list[str]]  # of the sources in this batch
    document_ids: NotRequired[Tensor]  # [B, S] int64, from 0 to D-1 over the batch; -1 at padding
    sample_ids: NotRequired[list[str]]  # of each of the D documents


class MetricLog(Protocol):
    """What the module needs of the monitored job."""

    def log(self, name: str, value: Tensor | float, **labels: str) -> None:
        """Report one value of this microbatch; device tensors stay on their device."""
        ...

    def phase(self, text: str) -> None:
        """Report the start of a new phase of training."""
        ...


class IdeficsModule(LightningModule):
    """Next-token prediction over interleaved pictures and text, with z-loss.

    `stabilizer_job` is set by `StabilizerCallback`; while it is None nothing is reported.
    `last_losses` holds the unweighted losses of the newest microbatch, on its device, and
    `last_document_losses` the mean loss and the number of tokens of every document in it, if the
    batch separates documents.
    """

    stabilizer_job: MetricLog | None = None

    def __init__(
        self,
        model: IdeficsForVisionText2Text,
        config: OptimizerConfig,
        *,
        steps: int,
        unfreeze: Sequence[UnfreezeConfig] = (),
        fused: bool = True,
    ) -> None:
        """Wrap a model.

        Args:
            model: What is trained.
            config: How it is trained.
            steps: Optimizer steps of the whole run; the schedule ends there.
            unfreeze: Frozen parts that begin to learn, and when.
            fused: Whether the optimizer moves all weights in one kernel.
        """
        super().__init__()
        self.model = model
        self.last_losses: dict[str, Tensor] = {}
        self.last_document_losses: DocumentLosses | None = None
        self._config = config
        self._steps = steps
        self._unfreeze = tuple(unfreeze)
        self._fused = fused

    @override
    def forward(self, batch: Inputs) -> Tensor:
        """Return the logits, [B, S, V]."""
        logits: Tensor = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"],
            image_attention_mask=batch["image_attention_mask"],
            use_cache=False,
        ).logits
        return logits

    def losses(self, batch: Inputs) -> TokenLosses:
        """Return the losses per predicted token."""
        return token_losses(self(batch), batch["labels"])

    @override
    def training_step(self, batch: Inputs, batch_idx: int) -> Tensor:
        """Return what is minimised: cross-entropy and weighted z-loss, per predicted token."""
        losses = self.losses(batch)
        loss = losses.mean(losses.cross_entropy)
        z_loss = losses.mean(losses.z)
        total = loss + self._config.z_loss_weight * z_loss
        ranks = reduce_losses(losses)
        if ranks is not None:
            loss, z_loss, total = ranks.loss, ranks.z_loss, total * ranks.weight
        self.last_losses = {"loss": loss.detach(), "z_loss": z_loss.detach()}
        self.last_document_losses = document_losses(losses, batch)
        if self.stabilizer_job is not None:
            self._report(self.stabilizer_job, batch, losses)
        return total

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule, stepped at every optimizer step."""
        later = [part for change in self._unfreeze for part in change.parts]
        optimizer = build_optimizer(self.model, self._config, later=later, fused=self._fused)
        schedule = build_schedule(optimizer, self._config, self._steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @override
    def configure_callbacks(self) -> Sequence[Callback]:
        """Return what unfreezes parts, where some are to be; Lightning adds it to its own."""
        return [UnfreezeSchedule(self._unfreeze)] if self._unfreeze else []

    def _report(self, job: MetricLog, batch: Inputs, losses: TokenLosses) -> None:
        for name, value in self.last_losses.items():
            job.log(name, value)
        loss, z_loss = self.last_losses["loss"], self.last_losses["z_loss"]
        job.log("loss_total", loss + self._config.z_loss_weight * z_loss)
        if "source_ids" not in batch or "source_names" not in batch:
            return
        sources = batch["source_ids"][:, 1:]  # a loss is that of the token that is predicted
        for number, source in enumerate(batch["source_names"]):
            mean = losses.mean(losses.cross_entropy, sources == number)
            job.log("loss", mean.detach(), source=source)


def document_losses(losses: TokenLosses, batch: Inputs) -> DocumentLosses | None:
    """Return the mean loss of every document, detached; None where the batch has no documents."""
    if "document_ids" not in batch or "sample_ids" not in batch:
        return None
    return losses.per_document(batch["document_ids"], len(batch["sample_ids"]))
