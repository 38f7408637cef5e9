import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stabilizer.agent.probes import probe_set
from stabilizer.agent.probes.probe_set import ProbeSet
from stabilizer.errors import ConfigurationError


def _step(probes, model, batch, sampled=True, step=1):
    """One step with gradients and without an optimizer."""
    probes.begin_step(sampled)
    loss = model(**batch).loss
    loss.backward()
    probes.after_backward()
    frames = probes.end_step(step, float(step))
    model.zero_grad()
    return frames


def _random_states():
    numpy_state = np.random.get_state()  # noqa: NPY002  the state that jobs use
    return (
        torch.get_rng_state().tolist(),
        (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        random.getstate(),
    )


def _train(model, batch, probes=None):
    """Losses, gradients, weights and random states of three steps, bit for bit."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(5)
    history = []
    for step in range(3):
        if probes:
            probes.begin_step(True)
        for _ in range(2):
            loss = model(**batch).loss
            loss.backward()
            if probes:
                probes.log("loss", loss)
        if probes:
            probes.after_backward()
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        if probes:
            assert probes.end_step(step, 0.0).blocks()
        history += [loss.detach(), *gradients, *(p.detach().clone() for p in model.parameters())]
    return history, _random_states()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_bit_for_bit_the_same(make_idefics, batch, implementation, checkpointing):
    runs = []
    for probed in (False, True):
        model = make_idefics(implementation)
        if checkpointing:
            model.activation_checkpointing_enable()
        if probed:
            with ProbeSet(model, accumulate=2) as probes:
                runs.append(_train(model, batch, probes))
        else:
            runs.append(_train(model, batch))
    (plain, plain_states), (probed, probed_states) = runs
    assert len(plain) > 300
    for expected, found in zip(plain, probed, strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(expected, found)
    assert plain_states == probed_states


class _Calls(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_one_copy_to_the_host_and_no_item(make_idefics, batch):
    model = make_idefics()
    probes = ProbeSet(model)
    probes.attach()
    probes.begin_step(True)
    with _Calls() as forward:
        loss = model(**batch).loss
    loss.backward()
    probes.log("loss", loss)
    probes.log("lr", 1e-3, group="0")
    with _Calls() as backward:
        probes.after_backward()
    with _Calls() as end:
        frames = probes.end_step(1, 0.0)
    probes.detach()
    with _Calls() as plain:
        model(**batch)

    for waiting in ("_local_scalar_dense", "nonzero", "is_nonzero"):
        assert forward.counts[waiting] == plain.counts[waiting]  # transformers looks at its masks
        assert backward.counts[waiting] == end.counts[waiting] == 0
    assert end.counts["cat"] == 1  # the one vector
    assert end.counts["_to_copy"] == end.counts["copy_"] == 0
    assert backward.counts["_foreach_norm"] == 1
    with _Calls() as reading:
        frames.blocks()
    assert set(reading.counts) <= {"detach"}


def _attention_of_perceiver(module, context, latents):
    """As `IdeficsPerceiverAttention.forward`, up to the weights, in float64."""
    context, latents = module.context_layer_norm(context), module.latents_layer_norm(latents)
    both = torch.cat([context, latents], dim=-2)
    q, k = module.q_proj(latents), module.k_proj(both)
    q, k = (x.unflatten(-1, (module.n_heads, -1)).transpose(1, 2) for x in (q, k))
    if module.qk_layer_norms:
        q, k = module.q_layer_norm(q), module.k_layer_norm(k)
    return (q.double() @ k.double().mT) * module.qk_scale


def _entropies(weights, visible):
    """Mean over queries of H(p) / log(visible keys), for each head; shape of weights [B,H,Q,K]."""
    keys = visible.expand_as(weights).sum(-1)
    entropy = torch.special.entr(weights.double()).sum(-1) / keys.clamp(min=2).log()
    return [entropy[:, h][keys[:, h] >= 2].mean().item() for h in range(weights.shape[1])]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("qk_norms", [False, True])
def test_every_attention_of_idefics(make_idefics, batch, read, implementation, qk_norms):
    model = make_idefics(implementation, qk_norms=qk_norms, dropout=0.0)
    probes = ProbeSet(model)
    probes.attach()
    found = read(_step(probes, model, batch))
    probes.detach()

    expected = _reference_entropies(model, batch, make_idefics)
    names = [str(key) for key in probes.catalogs[1].series if key.metric == "attention_entropy"]
    assert len(names) == 2 * len(expected) == 2 * 7
    assert {name for name in found if name.startswith("attention_entropy")} == set(names)
    for key in probes.catalogs[1].series:
        if key.metric == "attention_entropy":
            heads = expected[key.labels["module"]]
            wanted = min(heads) if key.labels["head"] == "min" else sum(heads) / len(heads)
            assert found[str(key)] == pytest.approx(wanted, rel=1e-4)
        if key.metric == "attention_logit_max":
            assert math.isfinite(found[str(key)])


def _reference_entropies(model, batch, make_idefics):
    """From the weights that eager attention gives back, and from the Perceiver's own formula."""
    model.set_attn_implementation("eager")
    weights, perceiver = {}, {}
    for name, module in model.named_modules():
        if name.endswith((".self_attn", ".cross_attn")):
            module.register_forward_hook(
                lambda _m, _a, output, name=name: weights.update({name: output[1].detach()})
            )
        elif type(module).__name__ == "IdeficsPerceiverAttention":
            module.register_forward_pre_hook(
                lambda m, args, name=name: perceiver.update(
                    {name: _attention_of_perceiver(m, *args).softmax(-1)}
                )
            )
    with torch.no_grad():
        model(**batch)
    causal = torch.ones(10, 10, dtype=torch.bool).tril()
    text = causal & batch["attention_mask"].bool()[:, None, None, :]
    images = batch["image_attention_mask"].bool().repeat_interleave(4, dim=-1)[:, None]
    expected = {}
    for name, each in (weights | perceiver).items():
        visible = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        if ".layers" in name and "vision" not in name:
            visible = text
        elif "cross_attn" in name:
            visible = images
        expected[name] = _entropies(each, visible)
    return expected


def test_activations_gradients_gates_and_z_loss(make_idefics, batch, read):
    model = make_idefics()
    outputs, logits = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _m, _a, output, name=name: outputs.update({name: output.detach()})
            )
    model.lm_head.register_forward_hook(lambda _m, _a, output: logits.append(output.detach()))
    with ProbeSet(model) as probes:
        probes.begin_step(True)
        model(**batch).loss.backward()
        probes.after_backward()
        found = read(probes.end_step(1, 0.0))

    rms, gradients = 0, 0
    for key in probes.catalogs[1].series:
        module = key.labels["module"]
        if key.metric == "activation_rms":
            assert key.labels["kind"] in {"o_proj", "fc2", "q_proj", "k_proj"}
            expected = outputs[module].double().square().mean().sqrt().item()
            assert found[str(key)] == pytest.approx(expected, rel=1e-5)
            rms += 1
        if key.metric == "grad_norm":
            own = [p.grad for p in model.get_submodule(module).parameters()]
            expected = torch.cat([g.double().flatten() for g in own]).norm().item()
            assert found[str(key)] == pytest.approx(expected, rel=1e-5)
            gradients += 1
    assert rms == gradients == 4 * 7
    gate = (
        'gate{kind="gate",layer="0",'
        'module="model.gated_cross_attn_layers.0.alpha_dense",tower="cross_attention"}'
    )
    assert found[gate] == pytest.approx(math.tanh(1.0))
    expected = torch.logsumexp(logits[0].double(), -1).square().mean().item()
    assert found["z_loss"] == pytest.approx(expected, rel=1e-6)
    assert found["nonfinite"] == 0


def test_vector_gates_are_averaged(make_idefics, batch, read):
    model = make_idefics(alpha_type="vector")
    with torch.no_grad():
        alpha = model.model.gated_cross_attn_layers[0].alpha_dense
        alpha.copy_(torch.linspace(-1, 2, 32))
    with ProbeSet(model) as probes:
        found = read(_step(probes, model, batch))
    (value,) = [v for k, v in found.items() if k.startswith("gate") and "alpha_dense" in k]
    assert value == pytest.approx(torch.tanh(torch.linspace(-1, 2, 32)).mean().item(), rel=1e-5)


def test_unsampled_steps_have_the_every_step_catalog_only(make_idefics, batch, read):
    model = make_idefics()
    with ProbeSet(model) as probes:
        frames = _step(probes, model, batch, sampled=False)
    assert [catalog for catalog, _ in frames.blocks()] == probes.catalogs[:1]
    assert set(read(frames)) == {"z_loss", "grad_norm", "nonfinite"}


def test_gradient_checkpointing_counts_once(make_idefics, batch, read):
    values = []
    for checkpointing in (False, True):
        model = make_idefics(dropout=0.0)
        if checkpointing:
            model.activation_checkpointing_enable()
        with ProbeSet(model) as probes:
            probes.begin_step(True)
            torch.manual_seed(3)
            for scale in (1.0, 2.0):  # microbatches that differ, so that a wrong weight would show
                images = batch | {"pixel_values": batch["pixel_values"] * scale}
                model(**images).loss.backward()
            values.append(read(probes.end_step(1, 0.0)))
    assert values[0] == values[1]


def test_half_precision_under_autocast(make_idefics, batch, read):
    model = make_idefics(dropout=0.0)
    with ProbeSet(model) as probes:
        exact = read(_step(probes, model, batch))
        with torch.autocast("cpu", torch.bfloat16):
            half = read(_step(probes, model, batch))
    assert set(half) == set(exact)
    for name in exact:
        if name.startswith(("activation_rms", "attention_entropy", "z_loss")):
            assert half[name] == pytest.approx(exact[name], rel=0.15)


def test_the_sample_of_queries_is_shared_among_microbatches(make_idefics, batch, monkeypatch):
    asked = []

    def summarize(query, key, scale, masking, max_queries):
        asked.append(max_queries)
        return torch.zeros(2 * query.shape[1] + 2)

    monkeypatch.setattr(probe_set, "summarize", summarize)
    model = make_idefics()
    for options, expected in (
        ({}, 64),
        ({"accumulate": 3}, 22),
        ({"accumulate": 100}, 8),
        ({"max_queries": 3, "accumulate": 2}, 3),
    ):
        with ProbeSet(model, **options) as probes:
            _step(probes, model, batch)
        assert set(asked) == {expected}
        asked.clear()


def test_without_memory_an_attention_is_left_out(make_idefics, batch, read, monkeypatch):
    def summarize(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(probe_set, "summarize", summarize)
    model = make_idefics()
    with ProbeSet(model) as probes:
        found = read(_step(probes, model, batch))
    assert not any(name.startswith("attention") for name in found)
    assert any(name.startswith("activation_rms") for name in found)


def test_detaching_restores_everything(make_idefics, batch, read):
    modeling = pytest.importorskip("transformers.modeling_utils")
    model = make_idefics()
    registry = dict(vars(modeling.ALL_ATTENTION_FUNCTIONS))
    probes = ProbeSet(model)
    probes.attach()
    probes.begin_step(True)
    assert model.lm_head._forward_hooks
    probes.detach()
    assert not any(module._forward_hooks for module in model.modules())
    assert dict(vars(modeling.ALL_ATTENTION_FUNCTIONS)) == registry
    assert set(read(_step(probes, model, batch))) > {"grad_norm"}  # gradients need no hooks
    probes.attach()
    found = read(_step(probes, model, batch))
    assert any(name.startswith("attention_entropy") for name in found)


@pytest.mark.parametrize(("field", "value"), [("max_queries", 0), ("accumulate", -1)])
def test_numbers_that_mean_nothing(field, value):
    with pytest.raises(ConfigurationError, match=f"{field} is {value}"):
        ProbeSet(nn.Linear(2, 2), **{field: value})


def test_torch_alone_is_enough():
    program = (
        "import sys, torch; from stabilizer.agent.probes.probe_set import ProbeSet\n"
        "model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16), 2,"
        " enable_nested_tensor=False)\n"
        "with ProbeSet(model) as probes:\n"
        "    probes.begin_step(True); model(torch.ones(3, 1, 8)).sum().backward()\n"
        "    probes.after_backward(); blocks = probes.end_step(1, 0.0).blocks()\n"
        "assert len(blocks) == 2 and blocks[1][1].present is None\n"
        "assert 'transformers' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
