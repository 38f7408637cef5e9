import numpy as np

from stabilizer.collector.services.evaluation.stepping import frames_by_step, is_new
from stabilizer.protocol.frames import FrameBlock


def block(catalog, steps):
    steps = np.array(steps, np.int64)
    return FrameBlock(catalog, steps, steps * 1.0, np.zeros((len(steps), 1), np.float32))


def test_step_by_step_and_within_a_step_block_by_block():
    blocks = [block("a", [1, 2, 2, 4]), block("b", []), block("c", [2, 3]), block("a", [4])]
    found = [
        (step, [(part.catalog, index) for part, index in places])
        for step, places in frames_by_step(blocks)
    ]
    assert found == [
        (1, [("a", 0)]),
        (2, [("a", 1), ("a", 2), ("c", 0)]),
        (3, [("c", 1)]),
        (4, [("a", 3), ("a", 0)]),
    ]


def test_rules_see_each_catalog_once_at_a_step_and_never_an_earlier_one():
    seen = {"a": 5, "b": 3}
    assert is_new(seen, "a", 6)
    assert is_new(seen, "b", 5)
    assert is_new(seen, "c", 5)
    assert not is_new(seen, "a", 5)
    assert not is_new(seen, "b", 4)
    assert is_new({}, "a", 0)
