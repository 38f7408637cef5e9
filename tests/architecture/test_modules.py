"""Modules are large enough, shared, or a seam; a class name means one thing."""

import ast
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("stabilizer", "trainer", "dashboard")
MIN_LINES = 100

SEAMS = {
    "*/__init__.py": "the door of a package",
    "*/__main__.py": "starts a program",
    "stabilizer/cli/*.py": "one module per command group",
    "stabilizer/protocol/*.py": "the contract, one module per topic",
    "stabilizer/logs/*.py": "plug-ins: one format of logs each",
    "stabilizer/rules/detectors/*.py": "plug-ins: one detector each",
    "stabilizer/rules/kinds/*.py": "plug-ins: one kind of rule each",
    "stabilizer/collector/api/routers/*.py": "plug-ins: one group of endpoints each",
    "trainer/faults/*.py": "plug-ins: one kind of failure each",
    "trainer/data/sources/*.py": "plug-ins: one kind of data source each",
    "dashboard/actions/*.py": "plug-ins: one action of the user each",
    "dashboard/pages/*.py": "one page each",
}
"""Modules that may be small although only one other module imports them, with the reason."""

SHARED_CLASS_NAMES: dict[str, str] = {}
"""Class names that are used twice on purpose, with the reason."""


def sources() -> dict[str, Path]:
    """Return all production modules by dotted name."""
    paths = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths)
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


def importers(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return for each module the modules that import it."""
    found = defaultdict(set)
    for importer, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                continue
            for name in imported:
                if name in modules and name != importer:
                    found[name].add(importer)
    return found


def test_a_small_module_with_one_importer_is_a_seam():
    modules = sources()
    found = importers(modules)
    too_small = {
        path.relative_to(ROOT).as_posix(): f"{lines} lines, imported by {next(iter(users))} only"
        for name, path in modules.items()
        if len(users := found[name]) == 1
        and (lines := len(path.read_text().splitlines())) < MIN_LINES
        and not any(fnmatch(path.relative_to(ROOT).as_posix(), seam) for seam in SEAMS)
    }
    assert too_small == {}


def test_every_module_is_imported_or_starts_a_program():
    modules = sources()
    found = importers(modules)
    orphans = {
        path.relative_to(ROOT).as_posix()
        for name, path in modules.items()
        if not found[name] and path.name not in {"__init__.py", "__main__.py"}
    }
    assert orphans == set()


def test_every_listed_seam_exists():
    paths = [path.relative_to(ROOT).as_posix() for path in sources().values()]
    assert [seam for seam in SEAMS if not any(fnmatch(path, seam) for path in paths)] == []


def test_no_class_name_means_two_things():
    places = defaultdict(set)
    for path in sources().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(path.relative_to(ROOT).as_posix())
    twice = {name: sorted(paths) for name, paths in places.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in SHARED_CLASS_NAMES} == {}
    assert [name for name in SHARED_CLASS_NAMES if name not in twice] == []
