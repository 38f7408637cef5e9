"""The shipped rules on small series: what must happen, and what must not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from stabilizer.logs.rows import LogRow
from stabilizer.logs.stream import steps_of
from stabilizer.replay.job import ReplayResult, replay
from stabilizer.rules.loader import default_rules

Array = npt.NDArray[np.float64]
AT = 400


@dataclass
class Run:
    """A healthy run in which something happens after step `AT`."""

    rows: int = 600

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.since = np.arange(1.0, self.rows + 1) - AT
        loss = 2 + np.exp(-np.arange(self.rows) / 40)
        self.columns: dict[str, Array] = {
            "loss": loss * (1 + 0.01 * self.rng.standard_normal(self.rows)),
            "grad_norm": np.exp(0.1 * self.rng.standard_normal(self.rows)),
        }

    def after(self, value: Array | float, otherwise: float = 1.0) -> Array:
        """A factor from step `AT` on."""
        return np.where(self.since >= 0, value, otherwise)

    def layers(self, factor: Array | float = 1.0) -> None:
        """Add the outputs of eight modules; they grow by a tenth over the run."""
        for layer in range(8):
            noise = np.exp(0.03 * self.rng.standard_normal(self.rows))
            grown = np.linspace(1, 1.1, self.rows)
            self.columns[f"activation_rms/fc1/layer{layer}"] = grown * noise * factor

    def replayed(self, stride: int = 1) -> ReplayResult:
        names = tuple(self.columns)
        values = np.stack([self.columns[name] for name in names], axis=1)
        rows = [
            LogRow(step=index + 1, attempt=1, columns=names, values=values[index])
            for index in range(0, self.rows, stride)
        ]
        return replay(steps_of(rows), default_rules())


def first(result: ReplayResult) -> tuple[str, str] | None:
    """Kind and text of the first command."""
    commands = [(str(p.kind), p.text) for p in result.proposals if p.step >= AT]
    return commands[0] if commands else None


@pytest.fixture
def run() -> Run:
    return Run()


class TestRollback:
    def test_loss_that_heals_slowly_with_layers_moved(self, run):
        run.columns["loss"] *= 1 + 0.8 * run.after(np.exp(-run.since.clip(0) / 60), 0)
        run.layers(run.after(2.0))
        result = run.replayed()
        assert first(result)[0] == "rollback"
        assert result.proposals[0].step <= AT + 40

    def test_rate_that_was_raised_is_taken_back_by_the_rollback_alone(self, run):
        run.columns["loss"] *= run.after(1.8)
        run.columns["grad_norm"] *= run.after(4.0)
        run.columns["lr"] = 1e-3 * run.after(14.0)
        kind, text = first(run.replayed())
        assert kind == "rollback"
        assert "multiply" not in text

    def test_gradients_exploded(self, run):
        run.columns["grad_norm"] *= run.after(40.0)
        assert first(run.replayed())[0] == "rollback"

    def test_nan(self, run):
        run.columns["loss"] = run.columns["loss"] * run.after(np.nan)
        kind, text = first(run.replayed())
        assert kind == "rollback"
        assert "skip" not in text


class TestLeftAlone:
    def test_loss_that_heals_slowly_with_layers_untouched(self, run):
        run.columns["loss"] *= 1 + 0.5 * run.after(np.exp(-run.since.clip(0) / 40), 0)
        run.layers()
        assert first(run.replayed()) is None

    def test_harder_data(self, run):
        run.columns["loss"] *= run.after(1.1)
        run.layers()
        assert first(run.replayed()) is None

    def test_gradients_high_for_a_while(self, run):
        run.columns["grad_norm"] *= 1 + 30 * run.after(np.exp(-run.since.clip(0) / 20), 0)
        assert first(run.replayed()) is None

    def test_rate_raised_without_harm(self, run):
        run.columns["lr"] = 1e-3 * run.after(10.0)
        assert first(run.replayed()) is None


class TestAlert:
    def test_metric_that_comes_no_more(self, run):
        rows = run.rows
        run.columns["loss/web"] = np.full(rows, 2.0) + 0.01 * run.rng.standard_normal(rows)
        names = tuple(run.columns)
        values = np.stack([run.columns[name] for name in names], axis=1)
        gone = np.array([name == "grad_norm" for name in names])
        result = replay(
            steps_of(
                LogRow(
                    step=index + 1,
                    attempt=1,
                    columns=names,
                    values=values[index],
                    present=~gone if index > AT else None,
                )
                for index in range(rows)
            ),
            default_rules(),
        )
        assert first(result) is None
        assert {alert.rule for alert in result.alerts} == {"metric_lost"}
