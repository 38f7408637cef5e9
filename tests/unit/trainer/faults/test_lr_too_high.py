from __future__ import annotations

import logging

import pytest

from trainer.faults import LrTooHigh


def test_the_schedule_continues_in_its_shape_too_high(kit):
    assert kit.seen(LrTooHigh(step=3, factor=10)).rates == [1.0, 0.9, 0.8, 7.0, 6.0, 5.0]


def test_a_job_without_a_schedule_keeps_the_rate(kit):
    seen = kit.seen(LrTooHigh(step=2, factor=10), steps=4, module=kit.Foreign(schedule=False))
    assert seen.rates == [1.0, 1.0, 10.0, 10.0]


def test_a_rollback_undoes_it_and_it_does_not_happen_again(kit):
    seen = kit.seen(LrTooHigh(step=3, factor=10), kit.RewindOnce(2, 4), steps=5)
    assert seen.rates == [1.0, 0.9, 0.8, 7.0, 0.8, 0.7, 0.6]


def test_it_says_what_it_did(kit, caplog):
    with caplog.at_level(logging.WARNING, logger="trainer.faults"):
        kit.train(LrTooHigh(step=2, factor=10), steps=3)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["fault lr_too_high after step 2: learning rate 10 times too high"]


def test_a_job_that_resumes_behind_the_step_is_spared(kit, tmp_path):
    first = kit.train(steps=3)
    first.save_checkpoint(tmp_path / "at3.ckpt")
    seen = kit.seen(LrTooHigh(step=2, factor=10), steps=5, resume=tmp_path / "at3.ckpt")
    assert seen.rates == [0.7, 0.6]


@pytest.mark.parametrize("options", [{"step": 0}, {"step": 1, "factor": float("nan")}])
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError, match="LrTooHigh"):
        LrTooHigh(**options)
