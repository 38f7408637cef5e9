"""What is installed from a wheel, without the checkout around it."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds nothing but the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_an_installed_collector_finds_its_migrations_inside_the_package(installed, tmp_path):
    code = "from stabilizer.collector.storage import migrate as m; print(m.migrations_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    folder = Path(done.stdout.strip())
    assert folder == installed / "stabilizer" / "alembic"
    versions = {path.name for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert {path.name for path in (folder / "versions").glob("*.py")} == versions
    assert (folder / "script.py.mako").is_file()


def test_a_wheel_holds_our_packages_with_their_data_and_no_tests(installed):
    assert (installed / "stabilizer" / "rules" / "default.yaml").is_file()
    assert list((installed / "trainer" / "presets").glob("*.policy.yaml"))
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "stabilizer",
        "trainer",
        "dashboard",
    }
