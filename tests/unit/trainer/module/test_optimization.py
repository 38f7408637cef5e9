import pytest
import torch
from torch import nn

from trainer.config import OptimizerConfig
from trainer.module import build_model
from trainer.module.optimization import build_optimizer, build_schedule


def config(**options):
    return OptimizerConfig(**({"learning_rate": 2.0, "warmup_steps": 4} | options))


def rates(steps, count, **options):
    options = config(**options)
    optimizer = build_optimizer(nn.Linear(2, 2), options)
    schedule = build_schedule(optimizer, options, steps)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_from_the_first_step_on_to_the_peak():
    assert rates(20, 6)[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 1.1), ("cosine", 1.1), ("constant", 2.0)]
)
def test_shapes_meet_in_the_middle_and_end_where_they_should(schedule, middle):
    found = rates(24, 30, schedule=schedule, final_ratio=0.1)
    assert found[14] == pytest.approx(middle)
    last = 2.0 if schedule == "constant" else 0.2
    assert found[24:] == pytest.approx([last] * 6)


def test_cosine_stays_above_linear_in_its_first_half():
    linear, cosine = rates(24, 24, schedule="linear"), rates(24, 24, schedule="cosine")
    assert all(c > line for c, line in zip(cosine[5:14], linear[5:14], strict=True))


def test_without_a_warm_up_it_starts_at_the_peak():
    assert rates(10, 1, warmup_steps=0) == [2.0]


def test_only_matrices_decay(make_config):
    run = make_config()
    model = build_model(run.model)
    decayed, others = build_optimizer(model, run.optimizer).param_groups
    assert (decayed["name"], others["name"]) == ("decayed", "others")
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    not_decayed = {names[id(parameter)] for parameter in others["params"]}
    assert "model.embed_tokens.weight" in not_decayed
    assert "model.gated_cross_attn_layers.0.alpha_cross_attn" in not_decayed
    assert "model.layers.0.mlp.down_proj.weight" not in not_decayed
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, config()).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_a_restored_schedule_goes_on_as_the_unbroken_one():
    options = config(schedule="cosine")

    def make():
        optimizer = build_optimizer(nn.Linear(2, 2), options)
        return optimizer, build_schedule(optimizer, options, 20)

    def steps(optimizer, schedule, count):
        found = []
        for _ in range(count):
            optimizer.step()
            schedule.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    unbroken = make()
    steps(*unbroken, 7)
    optimizer_state, schedule_state = (part.state_dict() for part in unbroken)
    restored = make()
    restored[0].load_state_dict(optimizer_state)
    restored[1].load_state_dict(schedule_state)
    assert steps(*restored, 8) == steps(*unbroken, 8)


def test_the_step_is_adamw_to_a_bit_of_rounding():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    options = config(learning_rate=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    optimizers = [
        build_optimizer(ours, options),
        torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.2),
    ]
    for module, optimizer in zip((ours, theirs), optimizers, strict=True):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight)
