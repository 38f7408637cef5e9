"""Pages of the documentation site that are generated from the code while it is built."""

import json
import tempfile
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the OpenAPI document, the command line reference and the changelog."""
    generated = {
        "reference/openapi.json": openapi(),
        "reference/cli.md": command_line(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    return files


def openapi() -> str:
    """Return the collector's OpenAPI document as JSON."""
    from stabilizer.clock import SystemClock  # noqa: PLC0415  heavy
    from stabilizer.collector.api.app import create_app  # noqa: PLC0415  heavy
    from stabilizer.settings import CollectorSettings  # noqa: PLC0415  heavy

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/docs.db"
        app = create_app(CollectorSettings(database_url=url), SystemClock())
        document = json.dumps(app.openapi())
        app.state.services.close()
    return document


def command_line() -> str:
    """Return the reference of `stabilizer` as Markdown, one section per command."""
    from stabilizer.cli.main import app  # noqa: PLC0415  heavy

    lines = ["# Command line", ""]
    _describe(get_command(app), "stabilizer", lines)
    return "\n".join(lines)


def _describe(command: Any, path: str, lines: list[str]) -> None:  # noqa: ANN401  click's classes are private
    context = typer.Context(command, info_name=path)
    lines += [f"## `{path}`", "", command.help or "", ""]
    rows = [row for row in (p.get_help_record(context) for p in command.params) if row]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in rows]
        lines.append("")
    for name, child in getattr(command, "commands", {}).items():
        _describe(child, f"{path} {name}", lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
