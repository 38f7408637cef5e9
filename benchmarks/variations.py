"""Synthetic series with what must happen: variations of the cases that real logs have shown.

    python benchmarks/variations.py DIR [--seeds N] [--only PREFIX,...]

Writes DIR/<kind>_<seed>.csv and DIR/expect.csv in the form of `../shared/cases`. Each kind is drawn
anew with each seed: level, noise, length, sampling, size, and place of what happens. They are
no measure of how often the rules are right: they show which kinds the rules take for another.
`judgement.py --set variations` generates and judges them.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NONE: Final = "none"
ALERT: Final = "alert"
NOTICE: Final = "notice"
ACT: Final = "act"
ROLLBACK: Final = "rollback"


@dataclass
class Case:
    """A series, and what must happen in it."""

    steps: Array
    columns: dict[str, Array]
    must: str = NONE
    window: tuple[int, int] | None = None
    attempts: Array | None = None


@dataclass
class Draw:
    """The healthy run in which something happens."""

    rng: np.random.Generator
    stride: int = 1
    steps: Array = field(init=False)
    columns: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.start(int(self.rng.integers(900, 1600)))

    def start(self, rows: int, low: float = 0.3, high: float = 4.0, noise: float = 0.0) -> None:
        """Draw a healthy loss and gradient norm of so many rows."""
        rng = self.rng
        self.steps = self.stride * np.arange(1.0, rows + 1)
        level = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        fall = level * rng.uniform(0.3, 1.5)
        scale = self.steps[-1] * rng.uniform(0.08, 0.3)
        loss = level + fall * np.exp(-self.steps / scale) - 0.1 * level * self.share
        noise = noise or float(np.exp(rng.uniform(np.log(0.004), np.log(0.04))))
        loss *= 1 + noise / np.sqrt(min(self.stride, 10)) * rng.standard_normal(rows)
        norm = float(np.exp(rng.uniform(np.log(0.1), np.log(2))))
        spread = rng.uniform(0.05, 0.2)
        self.columns = {
            "loss": loss,
            "grad_norm": norm * np.exp(spread * rng.standard_normal(rows)),
        }

    @property
    def share(self) -> Array:
        """Each row's place in the run, from 0 to 1."""
        return self.steps / self.steps[-1]

    @property
    def loss(self) -> Array:
        """The loss, to be changed in place."""
        return self.columns["loss"]

    @property
    def norm(self) -> Array:
        """The gradient norm, to be changed in place."""
        return self.columns["grad_norm"]

    def place(self, low: float = 0.4, high: float = 0.7) -> int:
        """Draw a step in this part of the run."""
        return int(self.steps[int(len(self.steps) * self.rng.uniform(low, high))])

    def since(self, step: float) -> Array:
        """Steps since a step; negative before it."""
        return self.steps - step

    def ramp(self, step: float, length: float) -> Array:
        """0 up to a step, 1 from `length` steps later, linear between."""
        return np.clip(self.since(step) / length, 0, 1)

    def decay(self, step: float, length: float) -> Array:
        """0 before a step, 1 at it, then an exponential decay."""
        since = self.since(step)
        return np.where(since >= 0, np.exp(-np.maximum(since, 0) / length), 0)

    def done(self, must: str = NONE, window: tuple[int, int] | None = None) -> Case:
        """Return the case."""
        return Case(self.steps, self.columns, must, window)


Kind = Callable[[Draw], Case]


# healthy: no command


def plain(draw: Draw) -> Case:
    return draw.done()


def sparse(stride: int) -> Kind:
    def kind(draw: Draw) -> Case:
        draw.stride = stride
        draw.start(int(draw.rng.integers(120, 500)))
        return draw.done()

    return kind


def fine_tuning(draw: Draw) -> Case:
    draw.stride = int(draw.rng.choice([1, 1, 5, 10]))
    draw.start(int(draw.rng.integers(100, 400)) // min(draw.stride, 2), noise=0.08)
    return draw.done()


def heavy_tails(draw: Draw) -> Case:
    tails = draw.rng.standard_t(2.5, len(draw.steps))
    draw.loss[:] *= np.exp(np.clip(draw.rng.uniform(0.02, 0.06) * tails, -0.7, 0.7))
    draw.norm[:] *= np.exp(np.clip(0.3 * draw.rng.standard_t(2, len(draw.steps)), -2, 4))
    return draw.done()


def gradient_spikes(draw: Draw) -> Case:
    hit = draw.rng.random(len(draw.steps)) < draw.rng.uniform(0.01, 0.06)
    draw.norm[hit] *= np.exp(draw.rng.uniform(2, 5, hit.sum()))
    return draw.done()


def gradient_burst(draw: Draw) -> Case:
    """Gradients are high for a while; the loss does not care."""
    at, length = draw.place(), draw.rng.uniform(20, 80)
    draw.norm[:] *= 1 + draw.rng.uniform(2, 10) * draw.decay(at, length)
    return draw.done()


def warm_up_hump(draw: Draw) -> Case:
    """The loss falls, rises at the end of the warm-up, and falls on."""
    at, width = draw.place(0.1, 0.2), draw.rng.uniform(20, 40)
    hump = np.exp(-0.5 * (draw.since(at) / width) ** 2)
    draw.loss[:] *= 1 + draw.rng.uniform(0.05, 0.3) * hump
    draw.norm[:] *= 1 + draw.rng.uniform(0.5, 3) * hump
    return draw.done()


def warm_restart(draw: Draw) -> Case:
    """The rate goes back to its start: the loss rises a little and heals slowly."""
    at, length = draw.place(), draw.rng.uniform(80, 200)
    phase = np.where(draw.since(at) < 0, draw.steps / at, draw.since(at) / at)
    draw.columns["lr"] = 1e-4 * (0.55 + 0.45 * np.cos(np.pi * np.clip(phase, 0, 1)))
    draw.loss[:] *= 1 + draw.rng.uniform(0.03, 0.08) * draw.decay(at, length)
    return draw.done()


def rate_decay(draw: Draw) -> Case:
    """The rate decays to zero: the loss falls faster, and the gradient norm grows."""
    at = draw.place(0.6, 0.8)
    down = draw.ramp(at, draw.steps[-1] - at)
    draw.columns["lr"] = 3e-4 * (1.02 - down)
    draw.loss[:] *= 1 - 0.12 * np.sqrt(down)
    draw.norm[:] *= 1 + draw.rng.uniform(0.5, 2.5) * down
    return draw.done()


def harder_data(draw: Draw) -> Case:
    """Other data from here on: the loss steps up and stays, gradients are calm."""
    length = draw.rng.choice([1.0, 30.0])
    draw.loss[:] *= 1 + draw.rng.uniform(0.03, 0.2) * draw.ramp(draw.place(), length)
    return draw.done()


def data_order(draw: Draw) -> Case:
    """Unshuffled data: the level wanders over hundreds of steps, gradients are calm."""
    period = draw.rng.uniform(250, 700)
    wave = np.sin(2 * np.pi * draw.steps / period + draw.rng.uniform(0, 6))
    draw.loss[:] *= 1 + draw.rng.uniform(0.01, 0.04) * wave
    return draw.done()


def epoch_stairs(draw: Draw) -> Case:
    """The loss falls at the start of each epoch and is flat or rises a little within it."""
    length = draw.steps[-1] / draw.rng.integers(3, 7)
    epoch = draw.steps // length
    within = draw.steps / length - epoch
    draw.loss[:] *= 0.8**epoch * (1 + draw.rng.uniform(0, 0.06) * within)
    return draw.done()


def healing_spikes(draw: Draw) -> Case:
    for _ in range(draw.rng.integers(2, 6)):
        at, length = draw.place(0.1, 0.95), draw.rng.uniform(2, 10)
        height = draw.rng.uniform(0.1, 0.8)
        draw.loss[:] *= 1 + height * draw.decay(at, length)
        draw.norm[:] *= 1 + draw.rng.uniform(1, 10) * draw.decay(at, length)
    return draw.done()


def slow_healing(draw: Draw) -> Case:
    """A jump that is half gone after some fifty steps."""
    at, length = draw.place(), draw.rng.uniform(40, 70)
    draw.loss[:] *= 1 + draw.rng.uniform(0.05, 0.3) * draw.decay(at, length)
    draw.norm[:] *= 1 + draw.rng.uniform(0, 3) * draw.decay(at, length / 2)
    return draw.done()


def batch_ramp(draw: Draw) -> Case:
    """The batch doubles again and again: noise and gradient norm fall in stairs."""
    stair = np.floor(4 * draw.share)
    draw.norm[:] *= 0.7**stair
    draw.loss[:] *= 1 - 0.02 * stair
    return draw.done()


def smaller_batch(draw: Draw) -> Case:
    """A smaller batch from here on: noise and gradient norm are higher."""
    after = draw.since(draw.place()) >= 0
    draw.norm[after] *= draw.rng.uniform(1.3, 2)
    draw.loss[after] *= 1 + 0.02 * draw.rng.standard_normal(after.sum())
    return draw.done()


def norm_grows(draw: Draw) -> Case:
    """The gradient norm grows over the whole run while the loss falls."""
    draw.norm[:] *= 1 + draw.rng.uniform(1, 4) * draw.share
    draw.loss[:] *= 1 - 0.3 * draw.share
    return draw.done()


def reinforcement(draw: Draw) -> Case:
    """A loss of policy gradients: around zero, of both signs, noise larger than the level."""
    rows = len(draw.steps)
    trend = draw.rng.uniform(-0.3, 0.3) * draw.share
    draw.loss[:] = trend + 0.1 * draw.rng.standard_t(4, rows)
    return draw.done()


def divergence_penalty(draw: Draw) -> Case:
    """A loss that starts at zero and grows as the penalty does."""
    start = draw.place(0.05, 0.2)
    grown = 0.05 * (1 - np.exp(-np.maximum(draw.since(start), 0) / (0.2 * draw.steps[-1])))
    draw.loss[:] = grown * np.exp(0.3 * draw.rng.standard_normal(len(draw.steps)))
    draw.norm[:] *= np.exp(0.3 * draw.rng.standard_normal(len(draw.steps)))
    return draw.done()


def near_zero(draw: Draw) -> Case:
    """A loss that falls by orders of magnitude, with noise in proportion."""
    exponent = -6 * np.sqrt(draw.share)
    draw.loss[:] = np.exp(exponent + 0.3 * draw.rng.standard_normal(len(draw.steps)))
    draw.norm[:] *= np.exp(0.5 * exponent + 0.3 * draw.rng.standard_normal(len(draw.steps)))
    return draw.done()


def perplexity(draw: Draw) -> Case:
    draw.loss[:] = np.exp(draw.loss / draw.loss.mean() * 3)
    return draw.done()


def bits_per_byte(draw: Draw) -> Case:
    draw.start(len(draw.steps), 0.8, 1.2, noise=0.004)
    return draw.done()


def scaler_skips(draw: Draw) -> Case:
    """A loss scaler leaves steps out; the norm of those is not finite."""
    skipped = draw.rng.random(len(draw.steps)) < draw.rng.uniform(0.02, 0.35)
    skipped[: draw.rng.integers(3, 12)] = True
    draw.norm[skipped] = draw.rng.choice([np.nan, np.inf])
    if draw.rng.random() < 0.5:
        draw.columns["step_skipped"] = skipped.astype(float)
        draw.columns["loss_scale"] = np.full(len(draw.steps), 2.0**12)
    return draw.done()


def good_resume(draw: Draw) -> Case:
    """A restart repeats some steps; a small bump heals at once."""
    case = draw.done()
    at, back = draw.place(), int(draw.rng.integers(1, 100))
    draw.loss[:] *= 1 + draw.rng.uniform(0, 0.1) * draw.decay(at, 20)
    again = draw.since(at) >= 0
    case.steps = np.where(again, draw.steps - back, draw.steps)
    case.attempts = np.where(again, 2.0, 1.0)
    return case


def layers_learn(draw: Draw) -> Case:
    """Attention becomes narrower and outputs grow, as they do in good runs."""
    rows = len(draw.steps)
    for layer in range(6):
        end, grow = draw.rng.uniform(0.45, 0.8), draw.rng.uniform(1, 3)
        noise = 1 + 0.02 * draw.rng.standard_normal((3, rows))
        learned = 1 - np.exp(-6 * draw.share)
        start = 0.12 if layer == 0 else 0.95
        entropy = start * (1 - (1 - end) * learned) * noise[0]
        draw.columns[f"attention_entropy/mean/layer{layer}"] = entropy
        draw.columns[f"attention_logit_max/layer{layer}"] = 5 * (1 + 20 * draw.share) * noise[1]
        draw.columns[f"activation_rms/fc2/layer{layer}"] = (1 + grow * learned) * noise[2]
    return draw.done()


def z_loss_bump(draw: Draw) -> Case:
    at = draw.place()
    hump = np.exp(-0.5 * (draw.since(at) / draw.rng.uniform(15, 40)) ** 2)
    z_loss = 17 * (1 + 0.02 * draw.rng.standard_normal(len(draw.steps)))
    draw.columns["z_loss"] = z_loss * (1 + draw.rng.uniform(0.3, 2) * hump)
    del draw.columns["grad_norm"]
    return draw.done()


# lost: a command is due


def creeping(draw: Draw) -> Case:
    draw.stride = int(draw.rng.choice([1, 1, 2, 5, 10]))
    draw.start(max(300, 1600 // draw.stride), noise=draw.rng.uniform(0.003, 0.01))
    at, height = draw.place(0.5, 0.6), draw.rng.uniform(0.03, 0.06)
    draw.loss[:] *= 1 + height * draw.ramp(at, 600)
    draw.norm[:] *= 1 + draw.rng.uniform(1.5, 4) * draw.ramp(at, 600)
    return draw.done(ACT, (at, at + 450))


def blow_up(draw: Draw) -> Case:
    at = draw.place(0.4, 0.6)
    growth = np.exp(np.minimum(np.maximum(draw.since(at), 0) / draw.rng.uniform(40, 100), 5)) - 1
    draw.loss[:] *= 1 + 0.02 * growth
    draw.norm[:] *= 1 + 0.2 * growth
    return draw.done(ACT, (at, at + 250))


def jump_to_a_plateau(draw: Draw) -> Case:
    """A gradient spike, then a level that takes very long to come back."""
    at = draw.place()
    draw.loss[:] *= 1 + draw.rng.uniform(0.4, 1) * draw.decay(at, 900)
    draw.norm[:] *= 1 + draw.rng.uniform(10, 30) * draw.decay(at, 2)
    return draw.done(ROLLBACK, (at, at + 70))


def weights_lost(draw: Draw) -> Case:
    at = draw.place()
    draw.loss[:] += 3 * draw.loss[0] * draw.decay(at, 300)
    draw.norm[:] *= 1 + draw.rng.uniform(3, 10) * draw.decay(at, 200)
    return draw.done(ROLLBACK, (at, at + 60))


def gradients_then_loss(draw: Draw) -> Case:
    at = draw.place(0.3, 0.6)
    draw.norm[:] *= 1 + draw.rng.uniform(8, 20) * draw.ramp(at, 3)
    draw.loss[:] *= 1 + draw.rng.uniform(0.3, 1) * draw.ramp(at + 5, 20)
    return draw.done(ROLLBACK, (at, at + 80))


def fine_tuning_lost(draw: Draw) -> Case:
    rows = int(draw.rng.integers(200, 400))
    draw.start(rows, 0.1, 1, noise=0.03)
    at = draw.place(0.35, 0.7)
    draw.loss[:] += draw.loss[:20].mean() * draw.ramp(at, draw.rng.uniform(20, 150))
    draw.norm[:] *= 1 + draw.rng.uniform(3, 8) * draw.ramp(at, 5)
    return draw.done(ACT, (at, at + 70))


def not_a_number(draw: Draw) -> Case:
    at = draw.place()
    draw.loss[draw.since(at) >= 0] = np.nan
    draw.norm[draw.since(at) >= 0] = np.nan
    return draw.done(ROLLBACK, (at, at + 10))


def jumps_repeat(draw: Draw) -> Case:
    """The rate is too high: jumps come again before the last has healed."""
    at = draw.place(0.4, 0.5)
    for index in range(12):
        place = at + 40 * index + draw.rng.integers(0, 15)
        draw.loss[:] *= 1 + draw.rng.uniform(0.3, 0.8) * draw.decay(place, 10)
        draw.norm[:] *= 1 + draw.rng.uniform(3, 10) * draw.decay(place, 10)
    return draw.done(ACT, (at, at + 300))


def attention_collapses(draw: Draw) -> Case:
    """The attention of all layers becomes one-hot; the loss does not tell yet."""
    at = draw.place(0.3, 0.5)
    for layer in range(6):
        fall = draw.ramp(at + 20 * layer, 100)
        noise = 1 + 0.03 * draw.rng.standard_normal(len(draw.steps))
        draw.columns[f"attention_entropy/mean/layer{layer}"] = 0.8 * noise * (1 - 0.97 * fall)
        draw.columns[f"attention_logit_max/layer{layer}"] = 20 * noise * np.exp(7 * fall)
    return draw.done(ACT, (at, at + 400))


def scale_at_floor(draw: Draw) -> Case:
    at = draw.place()
    after = draw.since(at) >= 0
    scale = 2.0 ** np.clip(12 - draw.since(at), -4, 12)
    draw.columns["loss_scale"] = np.where(after, scale, 2.0**12)
    draw.norm[after] = np.inf
    draw.columns["step_skipped"] = after.astype(float)
    return draw.done(ACT, (at, at + 80))


# an alert


def stuck_at_zero(draw: Draw) -> Case:
    at = draw.place()
    draw.loss[draw.since(at) >= 0] = 0.0
    draw.norm[draw.since(at) >= 0] = draw.rng.choice([0.0, 1.0])
    return draw.done(NOTICE, (at, at + 100))


def optimizer_state_lost(draw: Draw) -> Case:
    at = draw.place()
    draw.loss[:] *= 1 + draw.rng.uniform(0.4, 1) * draw.decay(at, 120)
    case = draw.done(ALERT, (at, at + 160))
    case.attempts = np.where(draw.since(at) >= 0, 2.0, 1.0)
    return case


KINDS: Final[tuple[Kind, ...]] = (
    plain,
    fine_tuning,
    heavy_tails,
    gradient_spikes,
    gradient_burst,
    warm_up_hump,
    warm_restart,
    rate_decay,
    harder_data,
    data_order,
    epoch_stairs,
    healing_spikes,
    slow_healing,
    batch_ramp,
    smaller_batch,
    norm_grows,
    reinforcement,
    divergence_penalty,
    near_zero,
    perplexity,
    bits_per_byte,
    scaler_skips,
    good_resume,
    layers_learn,
    z_loss_bump,
    creeping,
    blow_up,
    jump_to_a_plateau,
    weights_lost,
    gradients_then_loss,
    fine_tuning_lost,
    not_a_number,
    jumps_repeat,
    attention_collapses,
    scale_at_floor,
    stuck_at_zero,
    optimizer_state_lost,
)
NAMED: Final[dict[str, Kind]] = {
    **{kind.__name__: kind for kind in KINDS},
    **{f"every_{stride}": sparse(stride) for stride in (10, 50, 100, 500)},
}


def make(kind: str, seed: int) -> Case:
    """Draw a case."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    return NAMED[kind](Draw(rng))


def write(folder: Path, seeds: int, only: tuple[str, ...] = ("",)) -> None:
    """Write cases and what must happen in them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in NAMED if name.startswith(only)]
    with (folder / "expect.csv").open("w", newline="") as file:
        expect = csv.writer(file)
        expect.writerow(["case", "must", "from", "to"])
        for name in names:
            for seed in range(seeds):
                case = make(name, seed)
                window = ("", "") if case.window is None else case.window
                expect.writerow([f"{name}_{seed}", case.must, *window])
                write_case(folder / f"{name}_{seed}.csv", case)


def write_case(path: Path, case: Case) -> None:
    """Write a series in the form of `../shared/cases`."""
    attempts = np.ones(len(case.steps)) if case.attempts is None else case.attempts
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["attempt", "step", *case.columns])
        table = zip(attempts, case.steps, *case.columns.values(), strict=True)
        for attempt, step, *values in table:
            rows.writerow([int(attempt), int(step), *(f"{value:.6g}" for value in values)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    write(options.folder, options.seeds, tuple(options.only.split(",")))


if __name__ == "__main__":
    main()
