"""House rules that no linter knows: sizes, folders, names and the cost of imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("stabilizer", "trainer", "dashboard")
MAX_MODULE, MAX_TEST_MODULE, MAX_FUNCTION, MAX_MODULES_IN_FOLDER = 600, 700, 60, 15
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", PACKAGES)
def test_modules_stay_readable(folder):
    too_long = {
        str(path): lines
        for path in modules(folder)
        if (lines := len(path.read_text().splitlines())) > MAX_MODULE
    }
    assert too_long == {}


def test_test_modules_stay_readable():
    too_long = {
        str(path): lines
        for path in modules("tests")
        if (lines := len(path.read_text().splitlines())) > MAX_TEST_MODULE
    }
    assert too_long == {}


@pytest.mark.parametrize("folder", PACKAGES)
def test_functions_stay_short(folder):
    too_long = [
        f"{path}:{node.lineno} {node.name}"
        for path in modules(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]
    assert too_long == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_folders_stay_small(folder):
    counts = {
        str(path): len(list(path.glob("*.py")))
        for path in (ROOT / folder, *(ROOT / folder).rglob("*"))
        if path.is_dir()
    }
    assert {path: count for path, count in counts.items() if count > MAX_MODULES_IN_FOLDER} == {}


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_module_is_named_after_nothing(folder):
    assert [path for path in modules(folder) if path.name in FORBIDDEN_NAMES] == []


def test_our_alembic_folder_does_not_hide_the_library():
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_broad_excepts_stand_only_where_training_must_outlive_us():
    allowed = {"stabilizer/agent/telemetry", "stabilizer/rules"}
    found = {
        path.relative_to(ROOT).parent.as_posix()
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not any(isinstance(child, ast.Raise) for child in ast.walk(node))
    }
    assert {
        folder for folder in found if not any(folder.startswith(room) for room in allowed)
    } == set()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("stabilizer.collector.api.app", {"torch", "lightning", "transformers", "plotly", "dash"}),
        ("stabilizer.cli.main", {"torch", "lightning", "transformers"}),
        ("stabilizer.agent", {"sqlalchemy", "fastapi", "uvicorn"}),
        ("stabilizer.rules.brain", {"sqlalchemy", "fastapi", "torch", "httpx"}),
        ("stabilizer.protocol.frames", {"sqlalchemy", "fastapi", "torch", "httpx"}),
    ],
)
def test_importing_a_room_loads_no_heavy_neighbour(module, forbidden):
    code = f"import sys, {module}; print(' '.join(sorted(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert forbidden & set(loaded) == set()
