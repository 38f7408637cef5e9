"""The story of README.md, told in short: the same command, the same verdict."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_the_loop_closes(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "trainer", "demo", "--exit", "--seed", "7"]
    command += ["--report", str(report), "--out", str(tmp_path / "demo")]
    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["passed"]
    assert {"undisturbed", "unprotected", "protected"} == found["arms"].keys()
    kinds = [command["kind"] for command in found["commands"] if command["arm"] == "protected"]
    assert "rollback" in kinds
    assert all(
        command["read_back"] for command in found["commands"] if command["state"] == "applied"
    )
    assert report.with_suffix(".png").stat().st_size > 10_000
    assert "<svg" in report.with_suffix(".html").read_text()
    assert "Follow it on the page: http://127.0.0.1:" in told.stdout
    assert "the job reads back" in told.stdout


def test_options_that_cannot_be_used_are_told_before_anything_starts(tmp_path):
    command = [sys.executable, "-m", "trainer", "demo", "--exit", "--seed", "-1"]
    told = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert "seed" in told.stderr
    assert list(tmp_path.iterdir()) == []
