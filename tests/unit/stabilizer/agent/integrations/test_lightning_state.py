from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.integrations.lightning_state import capture_metrics, restore_metrics


class OtherError(MeanSquaredError):
    """Shares its states with its parent in a collection: a compute group."""


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = MeanMetric()
        self.all = CatMetric()
        self.errors = MetricCollection(
            {"a": MeanSquaredError(), "b": OtherError(), "c": MeanAbsoluteError()}
        )

    def update(self, seed):
        values = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        self.mean.update(values)
        self.all.update(values)
        self.errors.update(values, values * 2)

    def compute(self):
        return {
            "mean": self.mean.compute().item(),
            "all": self.all.compute().tolist(),
            **{name: value.item() for name, value in self.errors.compute().items()},
        }


@pytest.mark.parametrize("before", [1, 2])
def test_metrics_go_back_and_on(before):
    module, undisturbed = Module(), Module()
    for seed in range(before):
        module.update(seed)
        undisturbed.update(seed)
    frozen = HostCopier().freeze(capture_metrics(module))
    for _ in range(2):
        module.update(77)
        module.compute()
        restore_metrics(module, frozen)
    module.update(5)
    undisturbed.update(5)
    assert module.compute() == undisturbed.compute()
    assert module.mean._update_count == undisturbed.mean._update_count
    module.errors.reset()
    module.errors.update(torch.ones(2), torch.zeros(2))
    assert {value.item() for value in module.errors.compute().values()} == {1.0}
