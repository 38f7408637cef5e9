"""The contract is frozen: a change of a message is a decision, not an accident.

After a wanted change: `python tests/architecture/test_protocol_schema.py` writes the schema anew;
raise PROTOCOL_VERSION if an existing field changed its meaning.
"""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stabilizer.protocol import (
    batches,
    commands,
    decisions,
    problems,
    runs,
    sampling,
    series,
    views,
)
from stabilizer.protocol.metrics import Metric

FROZEN = Path(__file__).with_suffix(".json")
MODULES = (batches, commands, decisions, problems, runs, sampling, series, views)


def schema():
    models = sorted(
        {
            value
            for module in MODULES
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, BaseModel)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        },
        key=lambda model: model.__name__,
    )
    _, definitions = models_json_schema([(model, "validation") for model in models])
    return {"definitions": without_prose(definitions["$defs"]), "metrics": [*Metric]}


def without_prose(value):
    """Descriptions and titles may be bettered at any time."""
    if isinstance(value, dict):
        return {
            key: without_prose(item)
            for key, item in value.items()
            if not (key in {"description", "title"} and isinstance(item, str))
        }
    return [without_prose(item) for item in value] if isinstance(value, list) else value


def test_messages_and_metric_names_are_those_that_were_agreed():
    assert schema() == json.loads(FROZEN.read_text())


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(schema(), indent=1, sort_keys=True) + "\n")
