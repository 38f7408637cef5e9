"""Commands, arguments and options are frozen: they change by decision, never by accident.

After an intended change, run `python tests/architecture/test_cli_surface.py` to record them.
"""

import json
from pathlib import Path

import typer
from typer.main import get_command

from dashboard.__main__ import serve as dashboard_serve
from stabilizer.cli.main import app as stabilizer_app
from trainer.__main__ import app as trainer_app

FROZEN = Path(__file__).with_suffix(".json")


def dashboard_app():
    app = typer.Typer()
    app.command()(dashboard_serve)
    return app


def surface():
    programs = {
        "stabilizer": stabilizer_app,
        "python -m trainer": trainer_app,
        "python -m dashboard": dashboard_app(),
    }
    return dict(item for name, app in programs.items() for item in commands(name, get_command(app)))


def commands(name, command):
    groups = getattr(command, "commands", {})
    if not groups or command.params:
        yield name, [parameter(found) for found in command.params if "completion" not in found.name]
    for child, found in groups.items():
        yield from commands(f"{name} {child}", found)


def parameter(found):
    default = found.default
    return {
        "names": sorted([*found.opts, *found.secondary_opts]),
        "kind": found.param_type_name,
        "type": type_name(found),
        "required": found.required,
        "many": found.nargs != 1 or bool(getattr(found, "multiple", False)),
        "default": default
        if default is None or isinstance(default, bool | int | float)
        else str(default),
        "envvar": found.envvar,
    }


def type_name(found):
    annotation = found.type_descriptor.annotation
    return getattr(annotation, "__name__", str(annotation))


def test_commands_and_options_are_those_that_users_know():
    assert surface() == json.loads(FROZEN.read_text())


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n")
