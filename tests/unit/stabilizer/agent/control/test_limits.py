from __future__ import annotations

import math

import pytest

from stabilizer.agent import Limits
from stabilizer.errors import CommandRejectedError, ConfigurationError
from stabilizer.protocol.commands import PauseParameters, ResumeParameters, StopParameters


@pytest.mark.parametrize(
    "options",
    [
        {"min_lr_scale": 0.0},
        {"min_lr_scale": 1.5},
        {"min_lr_scale": math.nan},
        {"max_rollbacks": -1},
        {"max_skip_steps": -1},
        {"max_skip_steps": 1.5},
    ],
)
def test_a_limit_out_of_range_is_refused(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"limits.{name}"):
        Limits(**options)


@pytest.mark.parametrize("parameters", [PauseParameters(), StopParameters()])
def test_a_job_may_forbid_a_pause_and_a_stop(make, parameters):
    command = make.command(parameters)
    Limits().check(command, lr_scale=1.0, rollbacks=0)
    with pytest.raises(CommandRejectedError) as caught:
        Limits(allow_pause=False, allow_stop=False).check(command, lr_scale=1.0, rollbacks=0)
    assert caught.value.reason == "beyond_limits"


def test_a_resume_is_always_allowed(make):
    strict = Limits(min_lr_scale=1.0, max_rollbacks=0, allow_pause=False, allow_stop=False)
    strict.check(make.command(ResumeParameters()), lr_scale=0.5, rollbacks=9)
