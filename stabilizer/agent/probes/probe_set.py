"""All probes of a model: what the training loop talks to.

Norms of gradients before clipping: the global one at every step, the modules' when sampled.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
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
"""Fewest query positions of a microbatch, however many microbatches share a step's."""

_logger = logging.getLogger(__name__)


class ProbeSet:
    """Measures a model in training, without changing or delaying it.

    A step goes: `begin_step`, then forwards and backwards of its microbatches, `after_backward`,
    the optimizer, `end_step`. Nothing waits for the device; random states are not touched; the
    model's outputs and gradients are bit for bit those without probes. What did not run or was not
    given at a step is absent from its frame.

    Args:
        model: What is trained, with or without wrappers around it.
        max_queries: Query positions of an attention that a step looks at, shared among its
            microbatches, of which each looks at 8 at least.
        attention: Whether to measure attentions: those that use the attention interface of
            transformers, and the Perceiver of IDEFICS. Others are left out.
        head: Dotted name of the module whose outputs are the logits; None for `lm_head`.
        accumulate: Microbatches of a step.
        groups: Names of the optimizer's parameter groups, label `group` of `lr`.

    Raises:
        ConfigurationError: A number is not positive, or there is no module of that name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_queries: int = 64,
        attention: bool = True,
        head: str | None = None,
        accumulate: int = 1,
        groups: Sequence[str] = ("0",),
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
        self._gradients = self._gradient_probe(model, sites)
        self._head_hooks = ForwardHooks(model, self._window.admits)
        self._module_hooks = ForwardHooks(model, self._window.admits)
        logits = find_head(model, head)
        if logits is not None:
            self._head_hooks.watch(logits, self._on_logits)
        self._tap = self._watch(sites)

    @property
    def every_step(self) -> Catalog:
        """Series of every step."""
        return self._table.every_step

    @property
    def modules(self) -> Catalog | None:
        """Series of the modules, on sampled steps; None if the model has nothing to measure."""
        return self._table.modules

    @property
    def extra(self) -> Catalog | None:
        """What the job has logged besides, so far; it grows at its end and then has another id."""
        return self._table.extra

    @property
    def catalogs(self) -> list[Catalog]:
        """All catalogs that there are now."""
        return [catalog for catalog in self._table.catalogs if catalog is not None]

    def attach(self) -> None:
        """Measure forwards from the next step on. The model is touched within steps only."""
        self._is_attached = True

    def detach(self) -> None:
        """Leave the model as if we had never been there; attaching again goes on."""
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
        """A step begins: call it before the first microbatch.

        What a step has recorded that was begun and never ended is thrown away; what was logged
        between two steps belongs to the second.

        Args:
            sampled: Whether the modules are measured at this step.
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
        """Give a value of a metric at this step.

        A tensor stays on its device. Given several times in a step (microbatches), the mean counts.
        What is given goes before what the probes have measured of the same series.

        Raises:
            ValueError: The value is not one number, or name or labels are not those of a series.
        """
        slot = self._table.find(name, labels)
        if name == Metric.Z_LOSS and not labels:
            self._job_logs_z_loss = True
        if slot is not None:
            self._record.log(slot, value)

    def after_backward(self, grad_scale: Tensor | float | None = None) -> None:
        """Measure the gradients: call it after the last backward, before clipping.

        Args:
            grad_scale: A loss scaler's factor that the gradients still carry; not waited for.
        """
        self._gradients.measure(self._record, grad_scale, sampled=self._is_sampled)

    @torch.no_grad()
    def end_step(self, step: int, time: float) -> PendingFrames:
        """Close the step: call it after the optimizer.

        Args:
            step: Completed optimizer steps.
            time: Seconds since the epoch.

        Returns:
            What was measured, on its way to the host: one copy, not waited for.
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

    def _gradient_probe(self, model: nn.Module, sites: Sequence[Site]) -> GradientProbe:
        whole, nonfinite = (
            self._table.slot(SeriesKey(metric=metric))
            for metric in (Metric.GRAD_NORM, Metric.NONFINITE)
        )
        modules = {self._slots(site)[1]: site.module for site in sites if site.kind in PROJECTIONS}
        return GradientProbe(model, whole, nonfinite, modules)

    def _watch(self, sites: Sequence[Site]) -> AttentionTap:
        """Set the hooks of the modules up, and the tap for attentions that need no hooks."""
        shows = {}
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
                    shows[site.module] = show
        return AttentionTap(shows)

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
        except torch.OutOfMemoryError:  # the job may need the very last of it; it comes first
            _logger.warning("no memory for the statistics of an attention; left out at this step")
            return
        self._record.add_attention(slots, summary)

    def _read_gates(self) -> None:
        for site in self._gates:
            if reductions.is_measurable(site.parameter):
                (slot,) = self._slots(site)
                self._record.add_value(slot, torch.tanh(site.parameter.float()).mean())


def _measurable(model: nn.Module, *, attention: bool) -> list[Site]:
    """Places that this package can measure; of the others no series is announced."""
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


_logger = logging.getLogger(__name__)


class GradientProbe:
    """Norms of the gradients that a model's parameters hold.

    Args:
        model: The model; shared parameters count once.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        modules: Slot of each module's norm; over all parameters in it, its bias among them.
    """

    def __init__(
        self, model: nn.Module, whole: Slot, nonfinite: Slot, modules: Mapping[Slot, nn.Module]
    ) -> None:
        self._parameters = list(model.parameters())
        self._slots = (whole, nonfinite)
        index = {parameter: number for number, parameter in enumerate(self._parameters)}
        self._modules = {
            slot: [index[parameter] for parameter in module.parameters()]
            for slot, module in modules.items()
        }
        self._is_sharded = any(hasattr(each, "_fsdp_wrapped_module") for each in model.modules())
        self._told = False

    @torch.no_grad()
    def measure(self, record: StepRecord, scale: Tensor | float | None, *, sampled: bool) -> None:
        """Put the norms of the present gradients into the record.

        Shards of distributed tensors are not the gradient: with one among them nothing is measured,
        and the log says so once.

        Args:
            record: Of the step.
            scale: A loss scaler's factor that the gradients still carry; None for none.
            sampled: Whether the modules' norms are wanted as well.
        """
        present = {
            number: _dense(parameter.grad)
            for number, parameter in enumerate(self._parameters)
            if parameter.grad is not None and parameter.grad.numel()
        }
        gradients = list(present.values())
        if not gradients:
            return
        whole = all(reductions.is_measurable(gradient) for gradient in gradients)
        if self._is_sharded or not whole:
            self._tell_once()
            return
        position = {number: place for place, number in enumerate(present)}
        groups = []
        for slot, numbers in self._modules.items() if sampled else ():
            places = [position[number] for number in numbers if number in position]
            if places:
                groups.append((slot, places))
        record.set_gradients(reductions.l2_norms(gradients), self._slots, groups, scale)

    def _tell_once(self) -> None:
        if not self._told:
            _logger.warning("gradients are not measured: some are sharded or of an unknown kind")
            self._told = True


def _dense(gradient: Tensor) -> Tensor:
    """Values of a sparse gradient, with those of the same row added up."""
    if gradient.layout is not torch.sparse_coo:
        return gradient
    values = gradient.coalesce().values()
    return values if values.numel() else values.new_zeros(1)
