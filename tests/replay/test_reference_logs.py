"""The labelled runs beside the checkout, read and judged as `stabilizer backtest` does."""

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from stabilizer.logs.formats import find_logs, read_rows
from stabilizer.logs.names import series_of
from stabilizer.logs.stream import LogStream, steps_of
from stabilizer.protocol.metrics import Kind

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SETS = ("real-runs", "small-runs", "public-logs", "cases")
needs_logs = pytest.mark.skipif(
    not (SHARED / "real-runs" / "score.py").exists(), reason="needs the reference data in ../shared"
)


@needs_logs
@pytest.mark.parametrize("name", SETS)
def test_every_log_is_read_whole_and_every_column_is_a_series(name):
    sources = find_logs([SHARED / name])
    folder = SHARED / name if name == "cases" else SHARED / name / "runs"
    assert {source.name for source in sources} == {
        path.stem for path in folder.glob("*.csv") if path.name != "expect.csv"
    }
    for source in sources:
        stream = LogStream()
        rows = list(islice(read_rows(source.paths[0]), 60))
        steps = list(steps_of(rows, stream))
        assert len(steps) == len({(row.attempt, row.step) for row in rows if _has_value(row)})
        assert str(stream.problems) in {"", "restarts: 1"}


def _has_value(row):
    return row.present is None or row.present.any()


@needs_logs
def test_per_layer_series_are_modules_and_never_the_whole_model():
    text = (SHARED / "small-runs/runs/bad_data_0.csv").read_text()
    header = text.splitlines()[0].split(",")
    keys = [series_of(name) for name in header if name not in {"step", "attempt"}]
    assert len(set(keys)) == len(keys)
    plain = {key.metric for key in keys if not key.labels}
    assert plain == {"loss", "grad_norm", "z_loss"}
    layers = [key for key in keys if "layer" in key.labels]
    assert {key.labels["kind"] for key in layers} <= set(Kind)
    assert all("module" in key.labels for key in layers)


@needs_logs
def test_the_scorer_of_labelled_runs_scores_what_backtest_proposes(tmp_path):
    shared = tmp_path / "shared"
    (shared / "small-runs" / "runs").mkdir(parents=True)
    (shared / "real-runs").mkdir()
    shutil.copy(SHARED / "real-runs" / "score.py", shared / "real-runs")
    shutil.copy(SHARED / "small-runs" / "events.csv", shared / "small-runs")
    shutil.copy(SHARED / "small-runs/runs/high_lr0.1_s0.csv", shared / "small-runs/runs")
    (shared / "cases").mkdir()
    for name in ("single_gradient_spikes.csv", "expect.csv"):
        shutil.copy(SHARED / "cases" / name, shared / "cases")
    done = subprocess.run(
        [sys.executable, "benchmarks/judgement.py", "--shared", shared, "--perturb", "every5"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["small-runs"]["none"]["act_events"] == 1
    assert set(report["small-runs"]) == {"none", "every5"}
    assert report["cases"]["none"]["cases"] == 1
    assert "us a row" in done.stdout
