"""Pictures of the detectors: one of each, and each shows something that is flagged."""

from pathlib import Path

from benchmarks.rule_pictures import FOLDER, PICTURES, flags_of, pictures
from stabilizer.rules.detector_specs import DetectSpec

ROOT = Path(__file__).parents[3]


def test_every_detector_has_a_picture_in_the_guide():
    assert set(PICTURES) == set(DetectSpec.model_fields)
    guide = (ROOT / "docs/rules.md").read_text()
    for name, content in pictures():
        assert (ROOT / FOLDER / f"{name}.svg").is_file()
        assert f"images/rules/{name}.svg" in guide
        assert content.startswith("<svg ")


def test_every_picture_shows_calm_steps_and_flagged_ones():
    for name, (values, detect) in PICTURES.items():
        flags = flags_of(values, detect)
        assert flags.any(), name
        assert not flags[:200].any(), name
