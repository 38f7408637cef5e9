"""All probes of a model: the interface of the training loop."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor, nn

from stabilizer.agent.probes import reductions
from stabilizer.agent.probes.attention import summarize
from stabilizer.agent.probes.attention_sources import (
    AttentionCall,
    AttentionTap,
    ProjectedAttention,
    scores_its_projections,
    uses_interface,
)
from stabilizer.agent.probes.catalogs import (
    PROJECTIONS,
    SeriesTable,
    every_step_catalog,
    modules_catalog,
    site_series,
)
from stabilizer.agent.probes.gradients import GradientNormMeter, GradientProbe
from stabilizer.agent.probes.hooks import (
    ForwardHooks,
    RecordingWindow,
    compiled_modules,
)
from stabilizer.agent.probes.naming import Site, describe, find_head
from stabilizer.agent.probes.record import AttentionSlots, HostCopy, PendingFrames, Slot, StepRecord
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.metrics import Kind, Metric
from stabilizer.protocol.series import Catalog, SeriesKey

_MIN_QUERIES: Final = 8
"""Fewest query positions sampled per microbatch."""

_logger = logging.getLogger(__name__)


class ProbeSet:
    """Measures a model in training, without changing or delaying it.

    Order of a step: `begin_step`, forward and backward of its microbatches, `after_backward`, the
    optimizer, `end_step`. Nothing waits for the device, random states are not touched, and the
    model's outputs and gradients are bit for bit those without probes. What did not run or was not
    logged at a step is absent from its frame.

    Args:
        model: The model in training, with or without wrappers.
        max_queries: Query positions sampled per attention and step, shared among its microbatches;
            at least 8 per microbatch.
        attention: Whether to measure attentions: those that use the attention interface of
            transformers, and the Perceiver of IDEFICS. Others are skipped.
        head: Dotted name of the module whose outputs are the logits; None for `lm_head`.
        accumulate: Microbatches per step.
        groups: Names of the optimizer's parameter groups, for the label `group` of `lr`.
        gradients: Meter of this model's gradients; None for a new one.

    Raises:
        ConfigurationError: A number is not positive, or no module has that name.
    """

    def __init__(  # noqa: PLR0913  what is known of a job; all but the model have defaults
        self,
        model: nn.Module,
        *,
        max_queries: int = 64,
        attention: bool = True,
        head: str | None = None,
        accumulate: int = 1,
        groups: Sequence[str] = ("0",),
        gradients: GradientNormMeter | None = None,
    ) -> None:
        for field, number in (("max_queries", max_queries), ("accumulate", accumulate)):
            if number < 1:
                raise ConfigurationError(f"{field} is {number}; allowed: 1 or more")
        self._queries = max(min(_MIN_QUERIES, max_queries), -(-max_queries // accumulate))
        self._window = RecordingWindow(model)
        self._record = StepRecord()
        self._is_attached = self._is_sampled = self._job_logs_z_loss = False
        sites = _measurable(model, attention=attention)
        self._table = SeriesTable(every_step_catalog(groups), modules_catalog(sites))
        self._z_loss = self._table.slot(SeriesKey(metric=Metric.Z_LOSS))
        self._gates = [site for site in sites if site.kind is Kind.GATE]
        self._gradients = self._gradient_probe(gradients or GradientNormMeter(model), sites)
        self._head_hooks = ForwardHooks(model, self._window.admits)
        self._module_hooks = ForwardHooks(model, self._window.admits)
        logits = find_head(model, head)
        if logits is not None:
            self._head_hooks.watch(logits, self._on_logits)
        self._tap = self._watch(sites)

    @property
    def catalogs(self) -> list[Catalog]:
        """Catalogs that exist now: every step, modules if any, logged series if any."""
        return [catalog for catalog in self._table.catalogs if catalog is not None]

    def attach(self) -> None:
        """Measure from the next step on. Hooks are on the model within steps only."""
        self._is_attached = True

    def detach(self) -> None:
        """Remove everything from the model; `attach` resumes."""
        self._is_attached = False
        self._release()
        self._record = StepRecord()

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def begin_step(self, sampled: bool) -> None:
        """Begin a step, before its first microbatch.

        Discards the record of a step that was never ended. Values logged between two steps belong
        to the second.

        Args:
            sampled: Whether to measure the modules at this step.
        """
        if self._window.is_open:
            self._release()
            self._record = StepRecord()
        self._is_sampled = sampled
        self._window.open()
        if self._is_attached:
            self._head_hooks.put_on()
            if sampled:
                self._module_hooks.put_on()
                self._tap.open()

    def log(self, name: str, value: Tensor | float, **labels: str) -> None:
        """Log a value of a metric at this step.

        A tensor stays on its device. Several values in a step (microbatches) are averaged. A logged
        value replaces the probes' own measurement of the same series.

        Raises:
            ValueError: The value is not one number, or name or labels are invalid.
        """
        slot = self._table.find(name, labels)
        if name == Metric.Z_LOSS and not labels:
            self._job_logs_z_loss = True
        if slot is not None:
            self._record.log(slot, value)

    def after_backward(self, grad_scale: Tensor | float | None = None) -> None:
        """Measure the gradients, after the last backward and before clipping.

        If the model is sharded, the other ranks must measure theirs at the same time.

        Args:
            grad_scale: A loss scaler's factor that the gradients still carry; not waited for.
        """
        self._gradients.measure(self._record, grad_scale, sampled=self._is_sampled)

    @torch.no_grad()
    def end_step(self, step: int, time: float) -> PendingFrames:
        """End the step, after the optimizer.

        Args:
            step: Completed optimizer steps.
            time: Seconds since the epoch.

        Returns:
            The measurements, on their way to the host: one copy, not waited for.
        """
        if self._is_sampled:
            self._read_gates()
        self._release()
        record, self._record = self._record, StepRecord()
        return PendingFrames(
            step, time, self._table.catalogs, record.readings(), HostCopy(record.parts)
        )

    def _release(self) -> None:
        self._window.close()
        self._is_sampled = False
        self._head_hooks.take_off()
        self._module_hooks.take_off()
        self._tap.close()

    def _slots(self, site: Site) -> list[Slot]:
        return [self._table.slot(key) for key in site_series(site)]

    def _gradient_probe(self, meter: GradientNormMeter, sites: Sequence[Site]) -> GradientProbe:
        whole, nonfinite = (
            self._table.slot(SeriesKey(metric=metric))
            for metric in (Metric.GRAD_NORM, Metric.NONFINITE)
        )
        modules = {self._slots(site)[1]: site.module for site in sites if site.kind in PROJECTIONS}
        return GradientProbe(meter, whole, nonfinite, modules)

    def _watch(self, sites: Sequence[Site]) -> AttentionTap:
        """Set up the module hooks, and the tap for attentions that need no hooks."""
        handlers = {}
        for site in sites:
            slots = self._slots(site)
            if site.kind in PROJECTIONS:
                handle = functools.partial(self._on_output, slots[0])
                self._module_hooks.watch(site.observed, handle)
            elif site.kind is Kind.ATTENTION:
                show = functools.partial(self._on_attention, (slots[0], slots[1], slots[2]))
                if scores_its_projections(site.module):
                    projected = ProjectedAttention(site.module, show)
                    self._module_hooks.watch(projected.query_source, projected.on_query)
                    self._module_hooks.watch(projected.key_source, projected.on_key)
                else:
                    handlers[site.module] = show
        return AttentionTap(handlers)

    def _on_output(self, slot: Slot, output: Tensor) -> None:
        with reductions.measuring(output):
            self._record.add_norm(slot, reductions.l2_norm(output), output.numel())

    def _on_logits(self, output: Tensor) -> None:
        if output.dim() >= 2 and not self._job_logs_z_loss:
            with reductions.measuring(output):
                self._record.add_value(self._z_loss, reductions.z_loss(output))

    def _on_attention(self, slots: AttentionSlots, call: AttentionCall) -> None:
        if not self._window.admits():
            return
        try:
            with reductions.measuring(call.query):
                summary = summarize(call.query, call.key, call.scale, call.masking, self._queries)
        except torch.OutOfMemoryError:  # the job's memory comes first
            _logger.warning(
                "out of memory for the statistics of an attention; skipped at this step"
            )
            return
        self._record.add_attention(slots, summary)

    def _read_gates(self) -> None:
        for site in self._gates:
            if reductions.is_measurable(site.parameter):
                (slot,) = self._slots(site)
                self._record.add_value(slot, torch.tanh(site.parameter.float()).mean())


def _measurable(model: nn.Module, *, attention: bool) -> list[Site]:
    """Return the sites that can be measured; only they get series."""
    compiled = compiled_modules(model)
    sites = []
    for site in describe(model):
        if site.kind is Kind.ATTENTION:
            known = uses_interface(site.module) or scores_its_projections(site.module)
            wanted = attention and known and site.module not in compiled
        else:
            wanted = site.kind in PROJECTIONS or site.kind is Kind.GATE
        if wanted:
            sites.append(site)
    return sites
