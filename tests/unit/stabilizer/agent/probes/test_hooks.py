import copy
import pickle

import pytest
import torch
from torch import nn

from stabilizer.agent.probes.hooks import ForwardHooks, RecordingWindow, compiled_modules


def _hooks(model, watched, admits=lambda: True):
    seen: list[torch.Tensor] = []
    hooks = ForwardHooks(model, admits)
    hooks.watch(watched, seen.append)
    return hooks, seen


def test_outputs_are_seen_between_put_on_and_take_off():
    model = nn.Linear(2, 3)
    hooks, seen = _hooks(model, model)
    model(torch.ones(1, 2))
    hooks.put_on()
    hooks.put_on()
    output = model(torch.ones(1, 2))
    hooks.take_off()
    model(torch.ones(1, 2))
    assert len(seen) == 1
    assert torch.equal(seen[0], output)
    assert not seen[0].requires_grad
    assert not model._forward_hooks


class _Giving(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> object:
        return self.output


@pytest.mark.parametrize("output", [(torch.ones(2), None), [torch.ones(2), 3]])
def test_the_first_of_several_outputs_is_taken(output):
    model = _Giving(output)
    hooks, seen = _hooks(model, model)
    hooks.put_on()
    assert model() is output
    assert torch.equal(seen[0], torch.ones(2))


@pytest.mark.parametrize(
    "output",
    [None, (), [], {"x": torch.ones(2)}, "text", torch.ones(0, 4), torch.ones(2).long(), (None,)],
)
def test_strange_outputs_are_left_out(output):
    model = _Giving(output)
    hooks, seen = _hooks(model, model)
    hooks.put_on()
    assert model() is output
    assert seen == []


def test_a_fused_layer_in_eval_mode_keeps_its_fused_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(layer)
    hooks, seen = _hooks(model, layer.linear2)
    x = torch.randn(2, 5, 16)
    layer.eval()
    with torch.no_grad():
        expected = model(x)
        hooks.put_on()
        assert torch.equal(model(x), expected)
    assert seen == []
    hooks.take_off()
    layer.train()
    hooks.put_on()
    model(x)
    assert len(seen) == 1


def test_between_steps_a_model_can_be_copied_and_pickled():
    model = nn.Linear(2, 3)
    hooks, _ = _hooks(model, model)
    hooks.put_on()
    hooks.take_off()
    assert not copy.deepcopy(model)._forward_hooks
    assert not pickle.loads(pickle.dumps(model))._forward_hooks


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_and_scripted_modules_are_left_alone():
    inner, outer = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(torch.compile(inner, backend="eager"), outer)
    assert inner in compiled_modules(model)
    assert outer not in compiled_modules(model)
    hooks, _ = _hooks(model, inner)
    hooks.put_on()
    assert not inner._forward_hooks

    in_place = nn.Linear(2, 2)
    in_place.compile(backend="eager")
    assert compiled_modules(nn.Sequential(in_place)) == {in_place}


def test_the_window():
    model = nn.Linear(2, 2)
    window = RecordingWindow(model)
    assert not window.admits()
    window.open()
    assert window.admits()
    with torch.no_grad():  # a frozen part, or the first forward of a reentrant checkpoint
        assert window.admits()
    with torch.inference_mode():
        assert not window.admits()
    model.eval()
    assert not window.admits()
    model.train()
    assert window.admits()
    window.close()
    assert not window.admits()


def test_a_model_that_trains_in_eval_mode_is_recorded():
    model = nn.Linear(2, 2).eval()
    window = RecordingWindow(model)
    window.open()
    assert window.admits()


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpointing_computes_again_is_not_seen_again(reentrant):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    window = RecordingWindow(model)
    hooks, seen = _hooks(model, model[0], window.admits)
    calls: list[None] = []
    model[0].register_forward_hook(lambda *_: calls.append(None))
    window.open()
    hooks.put_on()
    for _ in range(2):  # microbatches
        x = torch.ones(3, 2, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        y.sum().backward()
    assert len(calls) == 4
    assert len(seen) == 2
    assert model[0].weight.grad is not None
