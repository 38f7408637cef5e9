"""What belongs to a step and what does not."""

import math

import pytest
import torch
from torch import nn

from stabilizer.agent.probes.probe_set import ProbeSet


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


class _Branches(nn.Module):
    """Two blocks, of which one may be left out; and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Block(), _Block()])
        self.lm_head = nn.Linear(4, 5)

    def forward(self, x, both=True):
        x = self.layers[0](x)
        return self.lm_head(self.layers[1](x) if both else x)


def _series(metric, layer):
    return f'{metric}{{kind="fc2",layer="{layer}",module="layers.{layer}.fc2",tower="language"}}'


@pytest.fixture
def model():
    torch.manual_seed(0)
    return _Branches()


@pytest.fixture
def probes(model):
    with ProbeSet(model) as probes:
        yield probes


def _rms(model, *inputs):
    with torch.no_grad():
        outputs = [model.layers[0](x).double().flatten() for x in inputs]
    return torch.cat(outputs).square().mean().sqrt().item()


def test_microbatches_are_put_together(model, probes, read):
    first, second = torch.randn(3, 4), torch.randn(6, 4) * 5
    expected = _rms(model, first, second)
    probes.begin_step(True)
    for x in (first, second):
        loss = model(x).square().mean()
        loss.backward()
        probes.log("loss", loss)
    losses = [model(x).square().mean().item() for x in (first, second)]
    probes.begin_step(True)  # the forwards above were in the step too: begin anew
    z_losses = []
    for x in (first, second):
        logits = model(x)
        z_losses.append(torch.logsumexp(logits.double(), -1).square().mean().item())
        probes.log("loss", logits.square().mean())
    found = read(probes.end_step(3, 0.0))
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert found["z_loss"] == pytest.approx(sum(z_losses) / 2, rel=1e-6)
    assert found[_series("activation_rms", 0)] == pytest.approx(expected, rel=1e-6)


def test_a_module_that_did_not_run_is_absent_and_not_stale(model, probes, read):
    probes.begin_step(True)
    model(torch.ones(2, 4)).sum().backward()
    probes.after_backward()
    assert _series("activation_rms", 1) in read(probes.end_step(1, 0.0))
    model.zero_grad()
    probes.begin_step(True)
    model(torch.ones(2, 4), both=False).sum().backward()
    probes.after_backward()
    found = read(probes.end_step(2, 0.0))
    assert _series("activation_rms", 0) in found
    assert _series("activation_rms", 1) not in found
    assert _series("grad_norm", 0) in found
    assert _series("grad_norm", 1) not in found


def test_forwards_outside_a_step_are_not_recorded(model, probes, read):
    expected = _rms(model, torch.ones(2, 4))
    model(torch.randn(9, 4) * 100)
    probes.begin_step(True)
    model(torch.ones(2, 4))
    model.eval()  # a validation between two microbatches
    model(torch.randn(9, 4) * 100)
    with torch.inference_mode():
        model(torch.randn(9, 4) * 100)
    model.train()
    model(torch.ones(2, 4))
    frames = probes.end_step(1, 0.0)
    model(torch.randn(9, 4) * 100)
    assert read(frames)[_series("activation_rms", 0)] == pytest.approx(expected, rel=1e-6)


def test_a_frozen_part_in_eval_mode_is_recorded(model, probes, read):
    model.layers[0].eval().requires_grad_(False)
    probes.begin_step(True)
    with torch.no_grad():
        hidden = model.layers[0](torch.ones(2, 4))
    model.lm_head(model.layers[1](hidden)).sum().backward()
    probes.after_backward()
    found = read(probes.end_step(1, 0.0))
    assert _series("activation_rms", 0) in found
    assert _series("grad_norm", 0) not in found
    assert _series("grad_norm", 1) in found


def test_an_aborted_step_leaves_no_record(model, probes, read):
    probes.begin_step(True)
    model(torch.randn(9, 4) * 100)
    probes.log("loss", 1e9)
    probes.begin_step(False)
    model(torch.ones(2, 4))
    probes.log("loss", 1.0)
    found = read(probes.end_step(1, 0.0))
    assert found["loss"] == 1.0
    assert _series("activation_rms", 0) not in found


def test_what_is_logged_between_steps_belongs_to_the_next(probes, read):
    probes.begin_step(False)
    assert read(probes.end_step(1, 0.0)) == {}
    probes.log("validation_loss", 2.5)
    probes.begin_step(False)
    assert read(probes.end_step(2, 0.0)) == {"validation_loss": 2.5}
    probes.begin_step(False)
    assert read(probes.end_step(3, 0.0)) == {}


def test_host_numbers_and_unknown_series(probes, read):
    probes.begin_step(False)
    probes.log("lr", 1e-3, group="0")
    probes.log("lr", 2e-3, group="1")  # a group that was not announced
    probes.log("loss", torch.tensor(2.0), source="web")
    first = probes.end_step(1, 5.0)
    every_step, modules, extra = probes.catalogs
    probes.begin_step(False)
    probes.log("tokens_per_second", 100)
    second = probes.end_step(2, 6.0)

    assert read(first) == {
        'lr{group="0"}': pytest.approx(1e-3),
        'lr{group="1"}': pytest.approx(2e-3),
        'loss{source="web"}': 2.0,
    }
    assert [catalog.id for catalog, _ in first.blocks()] == [every_step.id, extra.id]
    ((catalog, block),) = second.blocks()
    assert catalog.id != extra.id
    assert block.present is not None
    assert block.present.tolist() == [[False, False, True]]
    assert probes.catalogs == [every_step, modules, catalog]
    assert read(second) == {"tokens_per_second": 100.0}


def test_a_job_that_gives_z_loss_itself(model, probes, read, monkeypatch):
    probes.begin_step(False)
    model(torch.ones(2, 4))
    probes.log("z_loss", 7.0)
    assert read(probes.end_step(1, 0.0))["z_loss"] == 7.0
    probes.begin_step(False)
    model(torch.ones(2, 4))
    assert "z_loss" not in read(probes.end_step(2, 0.0))  # from now on it is the job's


def test_nan_and_inf_are_reported_as_such(model, probes, read):
    probes.begin_step(True)
    model(torch.tensor([[math.nan] * 4])).sum().backward()
    probes.log("loss", torch.tensor(math.nan))
    probes.log("loss_total", math.inf)
    probes.after_backward()
    found = read(probes.end_step(1, 0.0))
    assert math.isnan(found["loss"])
    assert found["loss_total"] == math.inf
    assert math.isnan(found["z_loss"])
    assert math.isnan(found["grad_norm"])
    assert math.isnan(found[_series("activation_rms", 0)])
    assert found["nonfinite"] > 0


def test_an_empty_batch_measures_nothing(model, probes, read):
    probes.begin_step(True)
    model(torch.ones(0, 4))
    assert read(probes.end_step(1, 0.0)) == {}


def test_a_model_with_nothing_to_measure(read):
    model = nn.Linear(2, 2)
    with ProbeSet(model) as probes:
        assert len(probes.catalogs) == 1
        probes.begin_step(True)
        model(torch.ones(1, 2)).sum().backward()
        probes.after_backward()
        assert set(read(probes.end_step(1, 0.0))) == {"grad_norm", "nonfinite"}
    with ProbeSet(nn.Identity()) as probes:
        probes.begin_step(True)
        probes.after_backward()
        assert probes.end_step(1, 0.0).blocks() == []


def test_a_named_head_and_a_module_added_later(model, read):
    with ProbeSet(model, head="layers.1") as probes:
        model.layers.append(_Block())
        probes.begin_step(False)
        x = torch.ones(2, 4)
        hidden = model.layers[1](model.layers[0](x))
        model.layers[2](hidden)
        found = read(probes.end_step(1, 0.0))
    expected = torch.logsumexp(hidden, -1).square().mean().item()
    assert found == {"z_loss": pytest.approx(expected, rel=1e-6)}


def test_errors_in_a_step_leave_the_model_clean_after_the_context(model):
    def broken() -> None:
        with ProbeSet(model) as probes:
            probes.begin_step(True)
            probes.log("loss", torch.ones(3))

    with pytest.raises(ValueError, match="one element"):
        broken()
    assert not any(module._forward_hooks for module in model.modules())


def test_groups_are_announced():
    probes = ProbeSet(nn.Linear(2, 2), groups=("a", "b"))
    assert 'lr{group="b"}' in map(str, probes.catalogs[0].series)
