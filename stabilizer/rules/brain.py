"""The brain of one run: frames in, alerts, incidents and commands out.

Pure: no clock, no I/O, no randomness. The same calls in the same order give the same outcomes, bit
for bit, also when the state is saved and loaded in between.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue, TypeAdapter, ValidationError

from stabilizer.errors import ConfigurationError, InvalidInputError
from stabilizer.protocol.batches import Marker, MarkerKind, SamplingPlan, SnapshotInfo
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Severity
from stabilizer.protocol.frames import Float32Array
from stabilizer.protocol.runs import Phase, Tick
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.compound import CompoundRule, Now
from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors.interface import BoolArray, State, part_of
from stabilizer.rules.kinds.absence import AbsenceRule
from stabilizer.rules.kinds.ratio import RatioRule
from stabilizer.rules.kinds.wall_clock import ClockRule
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.outcome import (
    AlertChange,
    AlertKey,
    Outcome,
    PolicyContext,
    RuleHealth,
)
from stabilizer.rules.phase import PhaseTracker
from stabilizer.rules.policy.loss_level import loss_column
from stabilizer.rules.policy.memory import Memory
from stabilizer.rules.policy.policy import Policy, remedies_of
from stabilizer.rules.risk.features import RiskFeatures
from stabilizer.rules.risk.model import METRIC, Risk, default_model
from stabilizer.rules.rule import Frame, Rule
from stabilizer.rules.spec import RuleSpec, SelectSpec

AnyRule = Rule | CompoundRule | ClockRule
_MEMORY = TypeAdapter(Memory)
_PHASE = TypeAdapter(PhaseTracker)
MAGIC: Final = b"STBR"
VERSION: Final = 1
MAX_BYTES: Final = 2**31
_PREFIX = struct.Struct("<4sH")
_LENGTH = struct.Struct("<I")
_RISK: Final = Catalog(series=(SeriesKey(metric=METRIC),))
"""The brain's own series: rules select it like any other."""

__all__ = ["Brain", "PolicyContext"]


class Brain:
    """Evaluates the rules of one run and decides.

    Call `observe` for every frame of a step, then `decide` once. Not thread-safe.
    """

    def __init__(self, rules: RuleFile) -> None:
        self._file = rules
        self._set_rules(_build(rules))
        spoiling = frozenset(spec.name for spec in rules.rules if spec.needs_rollback)
        self._policy = Policy(rules.policy, spoiling, remedies_of(rules.rules))
        self._risk = RiskFeatures()
        self._catalogs: dict[str, Catalog] = {}
        self._loss_columns: dict[str, tuple[int, bool] | None] = {}
        self._last_steps: dict[str, int] = {}
        self._phase = PhaseTracker()
        self._attempt = 0
        self._burst_until: int | None = None

    def _set_rules(self, rules: list[AnyRule]) -> None:
        self._rules = rules
        self._on_series = [rule for rule in rules if isinstance(rule, Rule)]
        self._on_steps = [rule for rule in rules if isinstance(rule, AbsenceRule)]
        self._on_rules = [rule for rule in rules if isinstance(rule, CompoundRule)]
        self._on_clock = [rule for rule in rules if isinstance(rule, ClockRule)]
        counted = [rule for rule in rules if not isinstance(rule, ClockRule)]
        self._counted = counted  # in steps
        self._by_name = {rule.spec.name: rule for rule in counted}
        self._plans: dict[str, list[Rule]] = {}  # the rules that watch a catalog
        self._planned: set[str] = set()

    def inherit(self, old: Brain, step: int) -> Outcome:
        """Take over what another version of the rules has learned, in place of which this comes.

        Rules that are the same keep their state and alerts; the alerts of others end. The policy
        keeps its memory: an incident goes on.

        Args:
            old: Not to be used afterwards.
            step: The step at which the rules change.
        """
        out = Outcome()
        rules: list[AnyRule] = []
        known = {rule.spec.name: rule for rule in old._rules}
        for rule in self._rules:
            before = known.get(rule.spec.name)
            rules.append(before if before is not None and before.spec == rule.spec else rule)
        for rule in old._rules:
            if not any(rule is kept for kept in rules):
                ended = rule.alerts.reset(step, "the rule has changed")
                out.alerts += () if rule.spec.signal else ended
        self._set_rules(rules)
        self._catalogs, self._loss_columns = old._catalogs, old._loss_columns
        self._last_steps, self._phase, self._risk = old._last_steps, old._phase, old._risk
        self._attempt, self._burst_until = old._attempt, old._burst_until
        healthy_after = self._policy.memory.lineage.healthy_after
        self._policy.memory = old._policy.memory
        self._policy.memory.lineage.healthy_after = healthy_after
        for change in out.alerts:
            if change.key.rule in old._by_name:
                self._policy.memory.lineage.alert_changed(change)
        return out

    def add_catalog(self, catalog: Catalog) -> None:
        """Add a catalog; idempotent."""
        if catalog.id not in self._catalogs:
            self._catalogs[catalog.id] = catalog
            self._loss_columns[catalog.id] = loss_column(catalog)

    def begin_attempt(self, number: int, from_step: int, reason: MarkerKind) -> Outcome:
        """Continue from a step in a new attempt; idempotent for one that has begun.

        Alerts end. Baselines forget what was learned after `from_step`, and keep the rest.
        """
        out = Outcome()
        if number <= self._attempt:
            return out
        is_first = number == 1 and from_step == 0  # nothing is resumed at the start of a run
        self._attempt = number
        for rule in self._counted:
            changes = rule.begin_attempt(from_step, None if is_first else reason)
            out.alerts += () if rule.spec.signal else changes
        for change in out.alerts:
            self._policy.memory.lineage.alert_changed(change)
        self._policy.begin_attempt(number, from_step)
        self._phase.rewind(from_step)
        self._risk.rewind(from_step)
        self._last_steps.clear()
        self._burst_until = None
        if self._policy.memory.incident is not None:
            self._burst_until = from_step + self._file.policy.sampling.burst
        return out

    def marker(self, marker: Marker) -> None:
        """Process an event of the job."""
        for rule in self._on_series:
            rule.marker(marker)
        if marker.kind is MarkerKind.PHASE_CHANGE:
            self._phase.forget()
            self._risk = RiskFeatures()

    @property
    def has_clock(self) -> bool:
        """Whether a rule depends on ticks."""
        return bool(self._on_clock)

    def would_change(self, tick: Tick) -> bool:
        """Return whether a tick would change an alert; one that would not need not be shown."""
        return any(rule.would_change(tick) for rule in self._on_clock)

    def tick(self, tick: Tick) -> Outcome:
        """Evaluate the rules on wall-clock time. Their alerts open no incident."""
        out = Outcome()
        for rule in self._on_clock:
            out.alerts += rule.tick(self._attempt, tick)
        return out

    def set_snapshots(self, snapshots: Sequence[SnapshotInfo]) -> None:
        """Replace the inventory of the job's snapshots."""
        self._policy.memory.lineage.set_snapshots(snapshots)

    def observe(
        self, catalog_id: str, step: int, values: Float32Array, present: BoolArray | None = None
    ) -> Outcome:
        """Evaluate the rules on one frame.

        A frame at or before the catalog's last step within the attempt is ignored.

        Args:
            catalog_id: A catalog that has been added.
            step: Completed optimizer steps.
            values: Shape [N], in catalog order; NaN and Inf are data.
            present: Shape [N]; None if everything was measured.

        Raises:
            InvalidInputError: The catalog is not known, or the shape is not the catalog's.
        """
        catalog = self._checked(catalog_id, values, present)
        out = Outcome()
        if step <= self._last_steps.get(catalog_id, -1):
            return out
        self._last_steps[catalog_id] = step
        if self._attempt == 0:
            self.begin_attempt(1, 0, MarkerKind.RESUME)
        self._observe_loss(catalog_id, step, values, present)
        with np.errstate(all="ignore"):  # NaN and Inf are data
            self._risk.observe(catalog, step, values, present)
            frame = Frame(self._attempt, step, catalog, values, present)
            for rule in self._watching(catalog):
                changes = rule.observe(frame)
                if changes and not rule.spec.signal:
                    out.alerts += changes
        self._note_changes(out.alerts)
        return out

    def _watching(self, catalog: Catalog) -> list[Rule]:
        """Return the rules that watch a series of a catalog."""
        plan = self._plans.get(catalog.id)
        if plan is None:
            plan = [rule for rule in self._on_series if rule.watches(catalog)]
            if catalog.id not in self._planned:
                self._planned.add(catalog.id)
                self._plans.clear()  # it may change what rules take of another
            self._plans[catalog.id] = plan
        return plan

    def _note_changes(self, changes: Sequence[AlertChange]) -> None:
        for change in changes:
            self._policy.memory.lineage.alert_changed(change)
            self._extend_burst(change)

    def _checked(self, catalog_id: str, values: Float32Array, present: BoolArray | None) -> Catalog:
        catalog = self._catalogs.get(catalog_id)
        if catalog is None:
            raise InvalidInputError(
                f"catalog {catalog_id!r} is not known", field="catalog", value=catalog_id
            )
        shape = (len(catalog),)
        if values.shape != shape or (present is not None and present.shape != shape):
            raise InvalidInputError(
                f"a frame of shape {values.shape} is not of catalog {catalog_id!r}",
                field="values",
                value=str(values.shape),
                allowed=str(shape),
            )
        return catalog

    def _observe_loss(
        self, catalog_id: str, step: int, values: Float32Array, present: BoolArray | None
    ) -> None:
        found = self._loss_columns[catalog_id]
        if found is None:
            return
        column, is_total = found
        if present is None or present[column]:
            value = float(values[column])
            self._policy.memory.loss.observe(value, is_total=is_total, step=step)
            self._phase.observe(step, value, is_total=is_total)

    def _extend_burst(self, change: AlertChange) -> None:
        if change.severity is Severity.NOTICE or change.resolved_step is not None:
            return
        until = change.key.pending_step + self._file.policy.sampling.burst
        self._burst_until = max(until, self._burst_until or 0)

    def decide(self, step: int, context: PolicyContext) -> Outcome:
        """Decide what to do; called once after all frames of a step."""
        changes = self._observe_risk(step)
        for absence in self._on_steps:
            own = absence.end_step(self._attempt, step)
            changes += () if absence.spec.signal else own
        stirred = {rule.spec.name for rule in self._counted if rule.alerts.active}
        now = Now(step, self._by_name, stirred, self._phase.phase)
        for compound in self._on_rules:
            own = compound.evaluate(self._attempt, now)
            if compound.alerts.active:
                stirred.add(compound.spec.name)
            if own and not compound.spec.signal:
                changes += own
        self._note_changes(changes)
        active: dict[AlertKey, ActiveAlert] = {}
        for rule in self._counted if stirred else ():
            if not rule.spec.signal:
                active |= {alert.key: alert for alert in rule.alerts.active.values()}
        if self._burst_until is not None and step >= self._burst_until:
            self._burst_until = None
        out = self._policy.decide(step, context, active)
        out.alerts = [*changes, *out.alerts]
        return out

    def _observe_risk(self, step: int) -> list[AlertChange]:
        """Show the risk to the rules that select it."""
        watching = self._watching(_RISK)
        risk = self.risk if watching else None
        if risk is None:
            return []
        values = np.array([risk.probability], np.float32)
        changes: list[AlertChange] = []
        for rule in watching:
            own = rule.observe(Frame(self._attempt, step, _RISK, values))
            changes += () if rule.spec.signal else own
        return changes

    @property
    def risk(self) -> Risk | None:
        """The risk that the run does not recover by itself; None while too little is known."""
        if not self._risk.ready:
            return None
        return default_model().assess(self._risk.features())

    def command_changed(self, command: Command) -> Outcome:
        """Process the new state of a command, the policy's own or a manual one."""
        return self._policy.command_changed(command)

    def end_run(self, step: int) -> Outcome:
        """Close open alerts and the incident: the run has ended."""
        alerts = [
            change for rule in self._rules if not rule.spec.signal for change in rule.end(step)
        ]
        out = self._policy.end_run(step)
        out.alerts = alerts
        return out

    @property
    def healthy_snapshots(self) -> tuple[str, ...]:
        """Ids of the healthy snapshots of the current branch."""
        return tuple(self._policy.memory.lineage.healthy)

    @property
    def sampling_plan(self) -> SamplingPlan:
        """The sampling plan, with a burst while an alert is pending."""
        plan = self._file.policy.sampling_plan
        return plan.model_copy(update={"burst_until_step": self._burst_until})

    @property
    def phase(self) -> Phase:
        """What the loss of the run does."""
        return self._phase.phase

    @property
    def rule_health(self) -> list[RuleHealth]:
        """The health of every rule, in the order of the file."""
        for rule in self._on_series:
            rule.health.note = rule.note
        return [rule.health for rule in self._rules]

    def state_dict(self) -> bytes:
        """Return the whole state; after `load_state`, evaluation continues bit for bit the same."""
        heads: list[JsonValue] = []
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for index, rule in enumerate(self._rules):
            head, own = rule.state()
            heads.append(head)
            arrays |= {f"{index}.{name}": array for name, array in own.items()}
        risk, own = self._risk.state()
        arrays |= {f"risk.{name}": array for name, array in own.items()}
        content = {
            "rules_hash": self._file.hash,
            "attempt": self._attempt,
            "last_steps": self._last_steps,
            "burst_until": self._burst_until,
            "rules": heads,
            "risk": risk,
            "memory": _MEMORY.dump_python(self._policy.memory, mode="json"),
            "phase": _PHASE.dump_python(self._phase, mode="json"),
        }
        return encode_state(content, arrays)

    def load_state(self, state: bytes) -> None:
        """Load a saved state. Catalogs are added separately, before or after.

        Raises:
            ConfigurationError: It is damaged, or belongs to other rules; nothing is changed.
        """
        head, arrays = decode_state(state)
        if head.get("rules_hash") != self._file.hash:
            raise ConfigurationError(
                f"the saved state belongs to rules {head.get('rules_hash')}, "
                f"not to {self._file.hash}"
            )
        try:
            rules = _build(self._file)
            for index, (rule, own) in enumerate(zip(rules, head["rules"], strict=True)):
                rule.load(own, part_of(arrays, f"{index}."))
            memory = _MEMORY.validate_python(head["memory"])
            saved_phase = head.get("phase")  # absent in a state of version 0.1
            phase = _PHASE.validate_python(saved_phase) if saved_phase else PhaseTracker()
            features = RiskFeatures()
            if "risk" in head:  # absent in a state of version 0.1
                features.load(head["risk"], part_of(arrays, "risk."))
            attempt, burst = int(head["attempt"]), head["burst_until"]
            last_steps = {str(name): int(step) for name, step in head["last_steps"].items()}
        except (KeyError, ValueError, TypeError, ValidationError) as error:
            raise ConfigurationError(f"the saved state is damaged: {error}") from error
        self._set_rules(rules)
        self._policy.memory, self._phase = memory, phase
        self._risk = features
        self._attempt, self._burst_until, self._last_steps = attempt, burst, last_steps


def _build(file: RuleFile) -> list[AnyRule]:
    rules: list[AnyRule] = []
    for spec in file.rules:
        if spec.clock is not None:
            rules.append(ClockRule(spec, spec.clock))
        elif spec.when is not None:
            rules.append(CompoundRule(spec, spec.when))
        elif spec.select is not None and spec.detect is not None:
            rules.append(_rule_on_series(spec, spec.select, spec.detect))
    return rules


def _rule_on_series(spec: RuleSpec, select: SelectSpec, detect: DetectSpec) -> Rule:
    if spec.ratio is not None:
        return RatioRule(spec, select, detect, spec.ratio)
    return (
        Rule(spec, select, detect) if detect.absent is None else AbsenceRule(spec, select, detect)
    )


def encode_state(head: Mapping[str, Any], arrays: State) -> bytes:
    """Write plain data and arrays as a saved state. No pickle.

    4 bytes  magic b"STBR"
    u16      version
    then, compressed with zlib:
      u32    length of the head
      head   JSON: plain data, and for every array its name, type, shape and offset
      rest   the arrays, little-endian, one after another
    """
    index, parts, offset = [], [], 0
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = np.ascontiguousarray(little).tobytes()
        index.append([name, little.dtype.str, list(array.shape), offset])
        parts.append(data)
        offset += len(data)
    text = json.dumps({"head": head, "arrays": index}, separators=(",", ":")).encode()
    body = zlib.compress(b"".join([_LENGTH.pack(len(text)), text, *parts]), level=1)
    return _PREFIX.pack(MAGIC, VERSION) + body


def decode_state(state: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read plain data and arrays.

    Raises:
        ConfigurationError: It is not a saved state, or one of another version.
    """
    if len(state) < _PREFIX.size:
        raise _refused(f"it has {len(state)} bytes")
    magic, version = _PREFIX.unpack_from(state)
    if magic != MAGIC or version != VERSION:
        raise _refused(f"it begins with {magic!r}, version {version}; allowed: version {VERSION}")
    try:
        body = _inflate(state[_PREFIX.size :])
        (length,) = _LENGTH.unpack_from(body)
        content = json.loads(body[_LENGTH.size : _LENGTH.size + length])
        start = _LENGTH.size + length
        arrays = {
            name: np.frombuffer(
                body, np.dtype(kind), int(np.prod(shape, dtype=np.int64)), start + offset
            ).reshape(shape)
            for name, kind, shape, offset in content["arrays"]
        }
        return content["head"], arrays
    except (zlib.error, struct.error, ValueError, KeyError, TypeError) as error:
        raise _refused(f"it is damaged: {error}") from error


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    body = inflater.decompress(data, MAX_BYTES)
    if not inflater.eof or inflater.unused_data:
        raise ValueError("its length is not what it should be")
    return body


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"the saved state of the rules cannot be used: {why}")
