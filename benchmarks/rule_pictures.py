"""Draw what each detector flags, for docs/rules.md: `python -m benchmarks.rule_pictures`.

The series are made by formula and a seeded generator. Each picture is an SVG file with the samples,
and the steps at which the detector flags in red; the same every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector
from stabilizer.rules.detectors.absent import Absent
from stabilizer.rules.phase import PhaseTracker

FOLDER: Final = Path("docs/images/rules")
WIDTH, HEIGHT, EDGE = 640, 150, 8
STEPS: Final = np.arange(1, 1001)
SINCE: Final = np.maximum(STEPS - 600, 0)
NOISE: Final = np.random.default_rng(0).standard_normal(1000)
LOSS: Final = 2 + 2 * np.exp(-STEPS / 120) + 0.03 * NOISE
Series = npt.NDArray[np.float64]

PICTURES: Final[dict[str, tuple[Series, dict[str, object]]]] = {
    "nonfinite": (np.where(SINCE > 150, np.nan, LOSS), {"nonfinite": {}}),
    "threshold": (np.exp(0.1 * NOISE + 0.005 * SINCE), {"threshold": {"above": 5.0}}),
    "robust_zscore": (
        np.exp(0.1 * NOISE + 1.5 * (SINCE > 150)),
        {"robust_zscore": {"above": 8, "scale": "log"}},
    ),
    "drift": (LOSS + 0.001 * SINCE, {"drift": {"above": 0.03}}),
    "collapse": (0.6 * np.exp(-SINCE / 60) + 0.01 * NOISE, {"collapse": {"below": 0.2}}),
    "spike": (
        17 + 0.2 * NOISE - 7 * ((SINCE > 100) & (SINCE < 106)),
        {"spike": {"direction": "down"}},
    ),
    "rise": (LOSS + 0.002 * SINCE, {"rise": {"above": 5, "window": 256}}),
    "fallen": (0.6 * np.exp(-STEPS / 500) + 0.01 * NOISE, {"fallen": {"share": 0.5}}),
    "stuck": (np.where(SINCE > 0, 0.0, LOSS), {"stuck": {"steps": 50}}),
    "forecast": (
        100 * np.exp(STEPS / 190 + 0.1 * NOISE),
        {"forecast": {"above": 1e4, "within": 200, "scale": "log"}},
    ),
    "shift": (LOSS + 0.4 * (SINCE > 0), {"shift": {"least": 0.02}}),
    "absent": (np.where(SINCE > 0, np.nan, LOSS), {"absent": {"steps": 100}}),
}


def flags_of(values: Series, detect: dict[str, object]) -> npt.NDArray[np.bool_]:
    """Return at which steps a detector flags one series; between its verdicts, as at the last."""
    detector = build_detector(DetectSpec.model_validate(detect).detector)
    detector.resize(1)
    flags, last = np.zeros(len(values), np.bool_), False
    with np.errstate(all="ignore"):
        for index, value in enumerate(values):
            step = index + 1
            usable = np.array([not isinstance(detector, Absent) or bool(np.isfinite(value))])
            verdict = detector.update(step, np.array([value]), usable)
            if isinstance(detector, Absent):
                verdict = detector.end_step(step)
            last = bool(verdict.flagged[0]) if verdict.known[0] else last
            flags[index] = last
    return flags


def draw(values: Series, marked: npt.NDArray[np.bool_], title: str) -> str:
    """Return an SVG picture of a series; log scale where it spans more than two decades."""
    finite = np.isfinite(values)
    low, high = values[finite].min(), values[finite].max()
    scaled = np.log(values) if low > 0 and high > 100 * low else values
    low, high = scaled[finite].min(), scaled[finite].max()
    x = EDGE + (WIDTH - 2 * EDGE) * np.arange(len(values)) / (len(values) - 1)
    y = HEIGHT - EDGE - (HEIGHT - 4 * EDGE) * (scaled - low) / (high - low)
    lines = [f'<text x="{EDGE}" y="16" font-family="sans-serif" font-size="13">{title}</text>']
    for start, end in _spans(marked):
        width = max(1.0, x[end] - x[start])
        place = f'x="{x[start]:.1f}" y="24" width="{width:.1f}" height="{HEIGHT - 24}"'
        lines.append(f'<rect {place} fill="#f6b8b8"/>')
    for start, end in _spans(finite):
        points = " ".join(f"{x[i]:.1f},{y[i]:.1f}" for i in range(start, end + 1))
        lines.append(f'<polyline points="{points}" fill="none" stroke="#20508c"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, paper, *lines, "</svg>", ""])


def _spans(marks: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of every stretch that is marked."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(end) - 1


def pictures() -> Iterator[tuple[str, str]]:
    """Yield the name and the content of every picture."""
    for name, (values, detect) in PICTURES.items():
        yield name, draw(values, flags_of(values, detect), f"{name}: flagged steps are shaded")
    loss = LOSS + 0.003 * SINCE
    tracker, diverging = PhaseTracker(), np.zeros(len(loss), np.bool_)
    for index, value in enumerate(loss):
        tracker.observe(index + 1, float(value), is_total=False)
        diverging[index] = tracker.phase == "diverging"
    title = ", ".join(f"{phase} from step {step}" for step, phase in tracker.changes)
    yield "phase", draw(loss, diverging, f"phase: {title}")


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in pictures():
        (FOLDER / f"{name}.svg").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
