"""Without a collector: the same rules in the job itself see the failure, decide, and rewind."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from stabilizer.errors import ConfigurationError

POLICY = """
rules:
  - name: loss_nonfinite
    doc: The loss is NaN or Inf.
    select: {metric: [loss, loss_total], source: null}
    detect: {nonfinite: {}}
    inhibit_after: {}
    severity: divergence
policy:
  mode: propose
  ladder:
    - {rollback: {margin: 1, skip: 1}, reduce_lr: {factor: 0.5}}
  act_on: {any: [severity:divergence]}
  healthy_after: 2
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 2, watch: 4}
"""


@pytest.fixture
def failing(kit):
    class Failing(kit.Net):
        """Its weights become NaN once, in the middle of the training."""

        has_failed = False

        def on_train_batch_start(self, *_):
            if self.global_step == 14 and not self.has_failed:
                self.has_failed = True
                with torch.no_grad():
                    self.head.weight.fill_(float("nan"))

    return Failing


def run(kit, net, folder, mode, text=POLICY):
    policy = folder / "policy.yaml"
    policy.write_text(text)
    return kit.train(
        partial(DataLoader, kit.Points(), batch_size=4, shuffle=True),
        net=net,
        snapshot_every=3,
        watcher_options={"url": None, "policy": policy, "mode": mode},
    )


def test_a_job_rewinds_itself(kit, failing, tmp_path):
    ran = run(kit, failing, tmp_path, "auto")
    (result,) = ran.results
    assert result.state == "applied"
    back = result.read_back
    assert back.step < 14 < result.applied_step <= 17
    assert (back.attempt, back.skipped_samples, back.lr_scale) == (2, 8, 0.5)
    assert back.lr == {"0": pytest.approx(0.005)}
    assert all(math.isfinite(loss) for loss in ran.losses[-8:])
    assert all(torch.isfinite(value).all() for value in ran.weights.values())


def test_a_job_that_may_only_propose_goes_down(kit, failing, tmp_path):
    ran = run(kit, failing, tmp_path, None)
    assert ran.results == []
    assert math.isnan(ran.losses[-1])


def test_a_policy_with_mistakes_is_refused_at_the_start(kit, tmp_path):
    with pytest.raises(ConfigurationError, match="has mistakes"):
        run(kit, kit.Net, tmp_path, "auto", text="rules: 3\n")
