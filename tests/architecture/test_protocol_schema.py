"""The wire contract is frozen: a message changes by decision, never by accident.

After an intended change, run `python tests/architecture/test_protocol_schema.py` to record the new
schema, and raise PROTOCOL_VERSION if an existing field changed its meaning.
"""

import json
import pkgutil
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import stabilizer.protocol
from stabilizer.protocol.message import Message
from stabilizer.protocol.metrics import LABEL_NAMES, Kind, Metric, Tower

FROZEN = Path(__file__).with_suffix(".json")


def modules():
    prefix = stabilizer.protocol.__name__ + "."
    return [
        import_module(found.name)
        for found in pkgutil.iter_modules(stabilizer.protocol.__path__, prefix)
    ]


def messages():
    """Every model that any module of the package defines, whatever it is based on."""
    return {
        value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == module.__name__
        and value is not Message
    }


def schema():
    models = sorted(messages(), key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in models])
    return {
        "definitions": without_prose(definitions["$defs"]),
        "metrics": [*Metric],
        "towers": [*Tower],
        "kinds": [*Kind],
        "labels": sorted(LABEL_NAMES),
    }


def without_prose(value):
    """Descriptions and titles may be improved at any time."""
    if isinstance(value, dict):
        return {
            key: without_prose(item)
            for key, item in value.items()
            if not (key in {"description", "title"} and isinstance(item, str))
        }
    return [without_prose(item) for item in value] if isinstance(value, list) else value


def test_messages_and_metric_names_are_those_that_were_agreed():
    assert schema() == json.loads(FROZEN.read_text())


def test_the_frozen_schema_holds_the_messages_of_every_module():
    frozen = json.loads(FROZEN.read_text())["definitions"]
    assert {model.__name__ for model in messages()} <= set(frozen)
    assert "actor" in frozen["AuditEntry"]["required"]


def test_every_message_has_the_same_base():
    assert [model for model in messages() if not issubclass(model, Message)] == []


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(schema(), indent=1, sort_keys=True) + "\n")
