"""Activation checkpointing: the same numbers, and an agent that counts every forward once."""

import pytest
import torch

from stabilizer.agent.probes.probe_set import ProbeSet
from trainer.config import OptimizerConfig
from trainer.module import IdeficsModule


class Job:
    def __init__(self, probes):
        self.log = probes.log


def step(model, inputs, **options):
    """One watched step: what the agent measures, what is minimised, and the gradients."""
    module = IdeficsModule(model.train(), OptimizerConfig(learning_rate=1e-3), steps=4)
    probes = ProbeSet(module, accumulate=2, **options)
    calls = {"mlp": 0}

    def count(*_):
        calls["mlp"] += 1

    with torch.random.fork_rng():
        torch.manual_seed(3)
        handle = model.model.layers[0].mlp.up_proj.register_forward_hook(count)
        with probes:
            probes.begin_step(sampled=True)
            module.stabilizer_job = Job(probes)
            for _ in range(2):  # microbatches
                total = module.training_step(inputs, 0)
                total.backward()
            probes.after_backward()
            frames = probes.end_step(1, 0.0)
        handle.remove()
    found = {}
    for catalog, block in frames.blocks():
        present = block.present[0] if block.present is not None else [True] * len(catalog)
        for key, value, given in zip(catalog.series, block.values[0], present, strict=True):
            if given:
                found[str(key)] = float(value)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found, float(total.detach()), gradients, calls["mlp"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "freeze", [[], ["language_layers", "language_norms", "embeddings", "vision"]]
)
def test_it_changes_neither_losses_nor_gradients_nor_what_the_agent_measures(
    small_model, inputs, dropout, freeze
):
    fields = {
        "dropout": dropout,
        "freeze": freeze,
        "gate_initializer": "ones",
        "norm_after_o": ["language"],
    }
    plain = step(small_model(**fields), inputs)
    checked = step(small_model(activation_checkpointing=True, **fields), inputs)
    assert (plain[3], checked[3]) == (2, 4)  # it does compute every layer a second time
    assert checked[1] == plain[1]
    assert checked[2].keys() == plain[2].keys()
    for name, gradient in plain[2].items():
        assert torch.equal(checked[2][name], gradient), name
    assert checked[0] == plain[0]
    assert {"z_loss", "loss", "grad_norm"} <= plain[0].keys()
    assert sum(name.startswith("activation_rms") for name in plain[0]) > 20
    assert sum(name.startswith("attention_entropy") for name in plain[0]) > 10


def test_the_z_loss_that_the_agent_measures_itself_counts_the_head_once(small_model, inputs):
    model = small_model(activation_checkpointing=True).train()
    plain = small_model().train()
    seen = []
    for each in (model, plain):
        probes = ProbeSet(each)
        with probes:
            probes.begin_step(sampled=False)
            given = {k: v for k, v in inputs.items() if k not in ("labels", "source")}
            each(**given, use_cache=False).logits.square().mean().backward()
            frames = probes.end_step(1, 0.0)
        catalog, block = next(iter(frames.blocks()))
        names = [str(key) for key in catalog.series]
        seen.append(float(block.values[0][names.index("z_loss")]))
    assert seen[0] == seen[1] > 0


def test_frozen_embeddings_get_no_gradient_and_no_hook(small_model):
    model = small_model(activation_checkpointing=True, freeze=["embeddings", "new_tokens"])
    assert not model.model.embed_tokens._forward_hooks
    ids = torch.tensor([[2, 3, 51]])
    assert not model.model.embed_tokens(ids).requires_grad
