from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from stabilizer.agent.integrations.solo import SoloBrain
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.runs import RunRegister
from stabilizer.protocol.series import Catalog

RULES = """\
rules:
  - {name: bad_loss, select: {metric: loss}, detect: {nonfinite: {}}, severity: divergence}
policy: {mode: propose, ladder: [pause], act_on: {any: [severity:divergence]}}
"""
LOSS = Catalog.of(["loss"])


class StandingClock:
    def now(self):
        return datetime(2026, 3, 1, tzinfo=UTC)

    def monotonic(self):
        return 0.0


class Frames:
    """One step whose loss is as given."""

    def __init__(self, step, loss):
        steps, times = np.array([step], np.int64), np.array([1.7e9])
        self.block = FrameBlock(LOSS.id, steps, times, np.array([[loss]], np.float32))

    def blocks(self):
        return [(LOSS, self.block)]


def trained(mode, losses, rules=RULES):
    """Train through the losses; return what was issued."""
    issued = []
    register = RunRegister(protocol_version=1, name="r", mode=mode, policy=rules, catalogs=(LOSS,))
    brain = SoloBrain(register, StandingClock(), issued.extend, lambda ids: None)
    brain.start()
    for step, loss in enumerate(losses, start=1):
        brain.put(Frames(step, loss))
    return issued


@pytest.mark.parametrize(
    ("mode", "said", "num_issued"),
    [(Mode.PROPOSE, "proposed only; mode auto", 0), (Mode.AUTO, "carried out next", 1)],
)
def test_the_log_says_whether_a_command_is_only_proposed(caplog, mode, said, num_issued):
    rules = RULES.replace("nonfinite: {}", "threshold: {above: 5}").replace(
        "[pause]", "[{reduce_lr: {factor: 0.5}}]"
    )
    issued = trained(mode, [1.0, 9.0, 9.0, 9.0], rules)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert said in warnings[0]
    assert [command.kind for command in issued] == ["reduce_lr"] * num_issued


def test_a_job_that_nobody_could_resume_is_not_paused(caplog):
    issued = trained(Mode.AUTO, [1.0, *[float("nan")] * 50])
    assert issued == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert 1 <= len(warnings) <= 2  # the tries that the guards allow, not one a step
    assert all("could not be resumed" in warning for warning in warnings)
