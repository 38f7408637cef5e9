import numpy as np

from stabilizer.protocol.batches import Marker
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import FrameBlock
from stabilizer.rules.loaded_brain import LoadedBrain
from stabilizer.rules.outcome import Outcome, PolicyContext

CALM = PolicyContext(Mode.OBSERVE)


class RecordingBrain:
    """Records its calls; every frame of `loud` has an outcome."""

    def __init__(self, loud=()):
        self.calls = []
        self.loud = loud

    def marker(self, marker):
        self.calls.append(("marker", marker.step))

    def observe(self, catalog, step, values, present):
        self.calls.append((catalog, step, values.tolist()))
        return Outcome(cancellations=[f"{catalog}-{step}"] if step in self.loud else [])

    def decide(self, step, context):
        self.calls.append(("decide", step, context.mode))
        return Outcome()


def block(catalog, steps):
    steps = np.array(steps, np.int64)
    values = np.arange(len(steps), dtype=np.float32)[:, None]
    return FrameBlock(catalog, steps, steps * 1.0, values)


def show(loaded, blocks, markers=(), context_at=lambda _step: CALM):
    recorded = []
    loaded.show(blocks, markers, context_at, recorded.append)
    return recorded


def kinds(calls):
    return [call[:2] for call in calls]


def test_each_step_shows_its_markers_then_every_catalog_then_the_policy():
    loaded = LoadedBrain(RecordingBrain(), CALM)
    markers = [Marker(kind="lr_change", step=step) for step in (9, 2, 1)]
    show(loaded, [block("a", [1, 2, 4]), block("b", []), block("c", [2, 3])], markers)
    assert kinds(loaded.brain.calls) == [
        ("marker", 1),
        ("a", 1),
        ("decide", 1),
        ("marker", 2),
        ("a", 2),
        ("c", 2),
        ("decide", 2),
        ("c", 3),
        ("decide", 3),
        ("a", 4),
        ("decide", 4),
        ("marker", 9),
    ]
    assert loaded.seen == {"a": 4, "c": 3}
    assert loaded.steps_since_save == 4


def test_a_catalog_is_shown_once_per_step_and_never_an_earlier_step():
    loaded = LoadedBrain(RecordingBrain(), CALM, seen={"a": 5, "b": 3})
    show(loaded, [block("a", [5]), block("b", [4])])
    assert loaded.brain.calls == []
    show(loaded, [block("b", [5]), block("c", [5])])
    assert kinds(loaded.brain.calls) == [("b", 5), ("c", 5), ("decide", 5)]


def test_outcomes_are_recorded_in_order_and_mark_the_state_as_unsaved():
    loaded = LoadedBrain(RecordingBrain(loud={2, 3}), CALM)
    assert show(loaded, [block("a", [1])]) == []
    assert not loaded.is_dirty
    recorded = show(loaded, [block("a", [2, 3, 4])])
    assert [outcome.cancellations for outcome in recorded] == [["a-2"], ["a-3"]]
    assert loaded.is_dirty


def test_another_context_is_kept_and_must_be_saved():
    loaded = LoadedBrain(RecordingBrain(), CALM)
    auto = PolicyContext(Mode.AUTO)
    show(loaded, [block("a", [1, 2])], context_at=lambda step: auto if step == 2 else CALM)
    assert loaded.context == auto
    assert loaded.is_dirty
    assert [call[2] for call in loaded.brain.calls if call[0] == "decide"] == ["observe", "auto"]


def test_values_are_those_of_the_step():
    loaded = LoadedBrain(RecordingBrain(), CALM)
    show(loaded, [block("a", [7, 6])])
    assert [call for call in loaded.brain.calls if call[0] == "a"] == [
        ("a", 6, [1.0]),
        ("a", 7, [0.0]),
    ]
