"""On a job that is not ours: any Lightning module with a torch scheduler."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stabilizer.errors import ConfigurationError
from trainer.faults import LrRestart
from trainer.faults.rates import restart


def test_the_schedule_begins_again_too_high(kit):
    assert kit.seen(LrRestart(step=3, factor=20)).rates == [1.0, 0.9, 0.8, 20.0, 18.0, 16.0]


def test_with_accumulation_it_happens_once_at_the_boundary(kit):
    seen = kit.seen(LrRestart(step=2, factor=2), steps=4, accumulate=3)
    assert seen.rates == [1.0, 0.9, 2.0, 1.8]


def test_a_rollback_undoes_it_and_it_does_not_happen_again(kit):
    rewind = kit.RewindOnce(to_step=2, at_step=5)
    seen = kit.seen(LrRestart(step=3, factor=20), rewind, steps=6)
    assert seen.rates == [1.0, 0.9, 0.8, 20.0, 18.0, 0.8, 0.7, 0.6, 0.5]


def test_it_is_not_part_of_what_is_saved(kit):
    fault = LrRestart(step=3, factor=20)
    kit.train(fault)
    assert fault.fired
    assert fault.state_dict() == {}


def test_another_fit_can_be_struck_again(kit):
    fault = LrRestart(step=1, factor=2)
    first, second = kit.seen(fault, steps=3), kit.seen(fault, steps=3)
    assert first.rates == second.rates == [1.0, 2.0, 1.8]


def test_a_job_without_a_schedule_is_reported(kit):
    with pytest.raises(ConfigurationError, match="no learning-rate schedule"):
        kit.train(LrRestart(step=1, factor=2), module=kit.Foreign(schedule=False))


def test_a_schedule_without_a_clock_is_reported():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ConfigurationError, match="object"):
        restart(object(), 2)
    with pytest.raises(ConfigurationError, match="ReduceLROnPlateau"):
        restart(ReduceLROnPlateau(optimizer), 2)


@pytest.mark.parametrize("options", [{"step": 0, "factor": 2}, {"step": 1, "factor": 0}])
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError, match="LrRestart"):
        LrRestart(**options)
