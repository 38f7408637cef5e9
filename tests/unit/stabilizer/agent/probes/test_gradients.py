import logging
import math

import pytest
import torch
from torch import nn

from stabilizer.agent.probes.gradients import GradientNormMeter, GradientProbe
from stabilizer.agent.probes.record import HostCopy, Slot, StepRecord

WHOLE, BROKEN, FIRST, SECOND = (Slot(0, 0), Slot(0, 1), Slot(1, 0), Slot(1, 1))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = _Net()
    net.second(net.first(torch.randn(5, 3))).square().sum().backward()
    return net


def _measure(net, scale=None, sampled=True):
    probe = GradientProbe(
        GradientNormMeter(net), WHOLE, BROKEN, {FIRST: net.first, SECOND: net.second}
    )
    record = StepRecord()
    probe.measure(record, scale, sampled=sampled)
    parts = HostCopy(record.parts).wait()
    return {slot: value for reading in record.readings() for slot, value in reading.read(parts)}


def _norm(*parameters):
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters))


def test_norms_of_all_and_of_modules_with_their_biases(net):
    values = _measure(net)
    assert values[WHOLE] == pytest.approx(_norm(*net.parameters()), rel=1e-6)
    assert values[FIRST] == pytest.approx(_norm(net.first.weight, net.first.bias), rel=1e-6)
    assert values[SECOND] == pytest.approx(_norm(net.second.weight, net.second.bias), rel=1e-6)
    assert values[BROKEN] == 0


def test_it_is_the_norm_that_clipping_sees(net):
    values = _measure(net, sampled=False)
    assert set(values) == {WHOLE, BROKEN}
    clipped = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert values[WHOLE] == pytest.approx(clipped.item(), rel=1e-6)


def test_modules_without_gradients_are_absent(net):
    net.first.weight.grad = None
    net.second.weight.grad = net.second.bias.grad = None
    values = _measure(net)
    assert SECOND not in values
    assert values[FIRST] == values[WHOLE] == pytest.approx(_norm(net.first.bias), rel=1e-6)
    net.first.bias.grad = None
    assert _measure(net) == {}


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0), torch.tensor([1024.0])])
def test_scaled_gradients(net, scale):
    expected = _measure(net)
    for parameter in net.parameters():
        parameter.grad *= 1024
    values = _measure(net, scale)
    assert values == pytest.approx(expected, rel=1e-6)


def test_the_scale_is_that_of_the_moment(net):
    expected = _measure(net)[WHOLE] / 8
    scale = torch.tensor(8.0)
    probe = GradientProbe(GradientNormMeter(net), WHOLE, BROKEN, {})
    record = StepRecord()
    probe.measure(record, scale, sampled=False)
    scale.fill_(2.0)  # what a scaler does after the step
    parts = HostCopy(record.parts).wait()
    (reading,) = record.readings()
    assert dict(reading.read(parts))[WHOLE] == pytest.approx(expected, rel=1e-6)


def test_nan_and_inf_are_data(net):
    net.first.weight.grad[0, 0] = math.nan
    net.second.bias.grad[0] = math.inf
    values = _measure(net)
    assert math.isnan(values[WHOLE])
    assert math.isnan(values[FIRST])
    assert math.isinf(values[SECOND])
    assert values[BROKEN] == 2
    assert math.isnan(_measure(net, scale=0.0)[WHOLE])
    net.first.weight.grad[0, 0] = 0.0
    assert math.isinf(_measure(net)[WHOLE])


def test_half_precision_gradients_beyond_its_range(net):
    net.half()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 60_000.0)
    elements = sum(parameter.numel() for parameter in net.parameters())
    assert _measure(net)[WHOLE] == pytest.approx(6e4 * math.sqrt(elements), rel=1e-3)


def test_sparse_gradients_add_up_their_rows():
    table = nn.Embedding(10, 4, sparse=True)
    table(torch.tensor([1, 1, 7])).sum().backward()
    net = nn.ModuleDict({"first": table, "second": nn.Linear(1, 1)})
    values = _measure(net)
    assert values[WHOLE] == values[FIRST] == pytest.approx(math.sqrt(4 * 4 + 4), rel=1e-6)
    table.weight.grad = torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.int64), torch.empty(0, 4), (10, 4), check_invariants=True
    )
    assert _measure(net)[WHOLE] == 0


def test_shared_parameters_count_once():
    net = _Net()
    net.first = nn.Linear(4, 4)
    net.second = nn.Linear(4, 4)
    net.second.weight = net.first.weight
    net.first.weight.grad = torch.ones(4, 4)
    values = _measure(net)
    assert values == {WHOLE: 4.0, FIRST: 4.0, SECOND: 4.0, BROKEN: 0.0}


def test_complex_gradients_are_skipped_and_logged_once(caplog):
    net = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    net.first.weight.grad = torch.ones(2, 2)
    net["second"].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    net["second"].weight.grad = torch.ones(2, 2, dtype=torch.complex64)
    probe = GradientProbe(GradientNormMeter(net), WHOLE, BROKEN, {})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            record = StepRecord()
            probe.measure(record, None, sampled=True)
            assert record.readings() == []
    assert len(caplog.records) == 1


def test_shards_are_not_taken_for_the_whole(net, caplog):
    sharded = nn.Module()
    sharded._fsdp_wrapped_module = net  # what FullyShardedDataParallel calls its inner module
    probe = GradientProbe(GradientNormMeter(sharded), WHOLE, BROKEN, {})
    record = StepRecord()
    probe.measure(record, None, sampled=True)
    assert record.readings() == []
    assert "sharded" in caplog.text
