import re
from pathlib import Path

import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import describe_fields

GUIDE = Path(__file__).parents[4] / "docs" / "training.md"


def described(name=""):
    return {field.name: field for field in describe_fields(name)}


def test_every_field_says_what_it_does():
    fields = described()
    assert len(fields) > 150
    assert [name for name, field in fields.items() if len(field.about) < 10] == []


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("optimizer.learning_rate", "number", None),
        ("optimizer.betas", "list of number", "[0.9, 0.999]"),
        ("optimizer.gradient_clip", "number", "1.0"),
        ("optimizer.schedule", "linear | cosine | constant", "linear"),
        ("model.qk_norm", "none | layer_norm | rms | l2", "rms"),
        ("model.unfreeze", "list of sections", "[]"),
        ("model.unfreeze.step", "whole number", None),
        ("training.compile", "true or false", "false"),
        ("training.accumulate", "whole number", "1"),
        ("data.sources.web.weight", "whole number", None),
        ("data.quarantine", "text | null", "null"),
        ("faults.slow_rank.seconds", "number", "1.0"),
    ],
)
def test_a_field_shows_its_type_and_default(name, kind, default):
    (field,) = describe_fields(name)[:1]
    assert (field.kind, field.default) == (kind, default)


def test_a_section_is_described_with_all_below_it():
    names = list(described("model.resampler"))
    assert names[0] == "model.resampler"
    assert "model.resampler.latents" in names
    assert all(name.startswith("model.resampler") for name in names)


def test_a_section_that_is_not_there_by_default_is_described_too():
    assert "faults.lr_restart.factor" in described("faults.lr_restart")


@pytest.mark.parametrize(
    ("name", "allowed"), [("optimizer.lr", "learning_rate, betas"), ("modelx", "model, data")]
)
def test_a_field_that_is_none_names_those_there_are(name, allowed):
    with pytest.raises(ConfigurationError, match=f"no such field; allowed: {allowed}"):
        describe_fields(name)


def test_the_guide_names_fields_that_there_are():
    names = set(
        re.findall(
            r"`((?:model|data|optimizer|training|monitor|faults)\.[\w.]+)`", GUIDE.read_text()
        )
    )
    assert len(names) > 60
    assert [name for name in sorted(names) if not _exists(name)] == []


def test_the_guide_names_every_knob_of_the_model_and_the_optimizer():
    text = GUIDE.read_text()
    fields = [name for name in described() if name.startswith(("model.", "optimizer."))]
    sizes = re.compile(
        r"model\.(vision|resampler)\.\w+|model\.\w+\.|model\.(vision|resampler)$|.*\[\]"
    )
    assert [name for name in fields if not sizes.match(name) and f"`{name}`" not in text] == []


def test_the_guide_lists_every_field_of_every_fault():
    rows = re.findall(r"^\| `(faults\.\w+)` \|.*\| (.*) \|$", GUIDE.read_text(), re.MULTILINE)
    listed = {f"{fault}.{field}" for fault, text in rows for field in re.findall(r"`(\w+)`", text)}
    fields = {name for name in described("faults") if name.count(".") == 2}
    assert listed == fields


def _exists(name):
    try:
        return bool(describe_fields(name))
    except ConfigurationError:
        return False
