"""What docs/install.md says about machines without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    """Return what a command prints; pip inside it knows of no index but what it is given."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | {"PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long  # downloads what a collector needs
@pytest.mark.timeout(600)
def test_a_bundle_is_installed_where_there_is_no_index(tmp_path):
    venv = Path(sys.prefix)
    folder = tmp_path / "bundle" / "stabilizer-bundle"
    make = ["make", "bundle", "EXTRAS=collector", f"VENV={venv}", f"BUNDLE={folder}"]
    subprocess.run([*make, f"--assume-old={venv}/.run"], cwd=ROOT, check=True)
    (bundle,) = tmp_path.glob("bundle/stabilizer-*-bundle.tar")
    run("tar", "-xf", bundle, cwd=tmp_path)
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    run(
        *("venv/bin/pip", "install", "--no-index", "--find-links", "stabilizer-bundle/wheels"),
        *("-c", "stabilizer-bundle/constraints.txt", "stabilizer[collector]"),
        cwd=tmp_path,
    )
    database = ["--database", f"sqlite:///{tmp_path}/collector.db"]
    run("venv/bin/stabilizer", "db", "upgrade", *database, cwd=tmp_path)
    assert run("venv/bin/stabilizer", "db", "current", *database, cwd=tmp_path)
