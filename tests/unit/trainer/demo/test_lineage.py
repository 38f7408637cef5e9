import math

from trainer.demo.report import Curve, follow


def test_a_run_without_rollback_is_its_samples(make):
    curve = follow([make.attempt(1, 0)], [make.series(1, [1, 2, 3], [3.0, 2.0, 1.0])])
    assert (curve.steps, curve.losses, curve.abandoned) == ((1, 2, 3), (3.0, 2.0, 1.0), ())


def test_a_rollback_leaves_the_abandoned_branch_out_of_the_curve(make):
    curve = follow(
        [make.attempt(2, 2), make.attempt(1, 0)],
        [make.series(1, [1, 2, 3, 4], [4.0, 3.0, 9.0, 99.0]), make.series(2, [3, 4], [2.0, 1.0])],
    )
    assert curve.steps == (1, 2, 3, 4)
    assert curve.losses == (4.0, 3.0, 2.0, 1.0)
    assert curve.abandoned == (((3, 4), (9.0, 99.0)),)


def test_two_rollbacks_to_the_same_step_abandon_both_branches(make):
    curve = follow(
        [make.attempt(1, 0), make.attempt(2, 1), make.attempt(3, 1)],
        [
            make.series(1, [1, 2], [5.0, 6.0]),
            make.series(2, [2], [7.0]),
            make.series(3, [2], [1.0]),
        ],
    )
    assert curve.losses == (5.0, 1.0)
    assert len(curve.abandoned) == 2


def test_an_attempt_without_samples_only_cuts(make):
    curve = follow([make.attempt(1, 0), make.attempt(2, 1)], [make.series(1, [1, 2], [5.0, 6.0])])
    assert curve.losses == (5.0,)


class TestFinal:
    def test_is_the_mean_of_the_tail(self):
        assert Curve(steps=(1, 2, 3), losses=(9.0, 2.0, 4.0)).final(2) == 3.0

    def test_nan_in_the_tail_shows(self):
        assert math.isnan(Curve(steps=(1, 2), losses=(1.0, math.nan)).final(2))

    def test_nothing_is_nan(self):
        assert math.isnan(Curve(steps=(), losses=()).final(5))
