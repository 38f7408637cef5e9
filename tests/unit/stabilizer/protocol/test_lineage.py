from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from stabilizer.protocol.runs import Attempt, Branch, trace_lineage


def attempt(number, from_step, parent=None, last_step=1000):
    return Attempt(
        number=number,
        from_step=from_step,
        last_step=last_step,
        parent=parent,
        reason="rollback",
        command_id=None,
        skipped_samples=0,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def live(*attempts):
    return {branch.attempt: branch.live_to for branch in trace_lineage(attempts)}


def test_no_attempt_has_no_lineage():
    assert trace_lineage(()) == ()


def test_a_single_attempt_is_live_without_an_end():
    (branch,) = trace_lineage([attempt(1, 0)])
    assert branch == Branch(1, 0, None)
    assert branch.is_live(10**9)


def test_a_rollback_leaves_what_lies_behind_its_target():
    first, second = trace_lineage([attempt(2, 500, parent=1), attempt(1, 0)])
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.is_live(500)
    assert not first.is_live(501)
    assert second.is_live(501)


def test_a_deeper_rollback_leaves_the_attempt_between_entirely():
    branches = trace_lineage([attempt(1, 0), attempt(2, 500, 1), attempt(3, 300, 2)])
    assert [branch.live_to for branch in branches] == [300, 300, None]
    assert not branches[1].is_live(501)


def test_a_later_rollback_behind_the_first_keeps_both_cuts():
    assert live(attempt(1, 0), attempt(2, 500, 1), attempt(3, 700, 2)) == {1: 500, 2: 700, 3: None}


def test_an_attempt_beside_the_way_is_abandoned_entirely():
    branches = trace_lineage([attempt(1, 0), attempt(2, 0, 1), attempt(3, 700, parent=1)])
    assert not branches[1].is_live(0)
    assert branches[0].live_to == 700


def test_an_unknown_parent_means_the_attempt_before():
    assert live(attempt(1, 0), attempt(2, 400), attempt(5, 600, parent=4)) == {
        1: 400,
        2: 600,
        5: None,
    }


def test_a_parent_that_cannot_be_does_not_go_round_in_circles():
    assert live(attempt(1, 0, parent=2), attempt(2, 400, parent=2)) == {1: 400, 2: None}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(1, 12)), min_size=1, max_size=12)
)
def test_no_step_is_live_twice(starts):
    attempts = [attempt(number, *start) for number, start in enumerate(starts, start=1)]
    branches = trace_lineage(attempts)
    for step in range(1, 60):
        own = [one for one in branches if one.from_step < step and one.is_live(step)]
        assert len(own) <= 1
    assert branches[-1].live_to is None
