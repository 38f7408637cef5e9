import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stabilizer.agent.control.optimizer_step import LrOverride
from stabilizer.errors import ConfigurationError
from trainer.config import OptimizerConfig
from trainer.module import build_model
from trainer.module.optimization import build_optimizer, build_schedule, follow_configuration


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
    learns = [name for name in names.values() if "post_layernorm" not in name]
    assert len(decayed["params"]) + len(others["params"]) == len(learns)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, config()).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_a_restored_schedule_continues_as_the_unbroken_one():
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


@pytest.fixture
def resume():
    """Return a function: optimizer and schedule of other options, restored after 7 of 10 steps."""

    def restored(*changed, steps=10, spoil=lambda optimizer, schedule: None, **options):
        parts = []
        for given, count in ((config(), 10), (config(**options), steps)):
            optimizer = build_optimizer(nn.Linear(2, 2), given)
            schedule = build_schedule(optimizer, given, count)
            if parts:
                optimizer.load_state_dict(parts[0].state_dict())
                schedule.load_state_dict(parts[1].state_dict())
            else:
                for _ in range(7):
                    optimizer.step()
                    schedule.step()
                spoil(optimizer, schedule)
            parts += [optimizer, schedule]
        follow_configuration(
            parts[2], parts[3], config(**options), changed=changed, peak_before=2.0
        )
        return parts[2], parts[3]

    return restored


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"steps": 24}, 2.0 * 17 / 20),
        ({"steps": 7}, 0.0),
        ({"learning_rate": 3.0}, 1.5),
        ({"schedule": "constant"}, 2.0),
        ({"final_ratio": 0.5}, 1.5),
        ({"warmup_steps": 9}, 1.6),
    ],
)
def test_a_restored_schedule_follows_what_is_configured_otherwise(resume, fields, expected):
    optimizer, schedule = resume(*fields, **fields)
    assert rate(optimizer) == pytest.approx(expected)
    steps, peak = fields.get("steps", 10), fields.get("learning_rate", 2.0)
    assert schedule.base_lrs == [peak] * len(optimizer.param_groups)
    optimizer.step()
    schedule.step()
    options = {name: value for name, value in fields.items() if name != "steps"}
    assert rate(optimizer) == pytest.approx(rates(steps, 9, **options)[8])


def test_moments_and_decays_follow_the_configuration_and_the_rate_stays(resume):
    fields = {"betas": (0.5, 0.6), "eps": 1e-5, "weight_decay": 0.7}
    optimizer, _ = resume(*fields, **fields)
    assert rate(optimizer) == 1.0
    decayed, others = optimizer.param_groups
    assert (decayed["betas"], decayed["eps"], decayed["weight_decay"]) == ((0.5, 0.6), 1e-5, 0.7)
    assert (others["betas"], others["eps"], others["weight_decay"]) == ((0.5, 0.6), 1e-5, 0.0)


def make_too_high(optimizer, schedule):
    schedule.base_lrs = [30 * peak for peak in schedule.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] *= 30


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, 30.0), ({"learning_rate": 3.0}, 45.0), ({"eps": 1e-5}, 30.0)]
)
def test_a_rate_that_a_fault_has_made_too_high_stays_too_high(resume, fields, expected):
    optimizer, _ = resume(*fields, spoil=make_too_high, **fields)
    assert rate(optimizer) == pytest.approx(expected)


def test_a_cut_by_the_agent_stays_on_top(resume):
    optimizer, _ = resume("learning_rate", learning_rate=3.0)
    cuts = LrOverride()
    cuts.load_state_dict({"cuts": [{"factor": 0.5, "hold_steps": 5, "ramp_steps": 0}]})
    cuts.attach([optimizer])
    optimizer.step()
    assert cuts.effective["decayed"] == pytest.approx(0.75)
    assert rate(optimizer) == pytest.approx(1.5)


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


def named_decays(optimizer):
    return {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_a_kind_can_decay_on_its_own_in_every_tower(small_model):
    by_kind = {"o_proj": 0.5, "fc2": 0.4, "embedding": 0.3, "norm": 0.2, "gate": 0.05, "head": 0.0}
    model = small_model(gate_type="vector")
    decays = named_decays(build_optimizer(model, config(weight_decay_by_kind=by_kind)))
    body = "model."
    assert {name: decays[body + name] for name in (
        "layers.0.self_attn.o_proj.weight", "gated_cross_attn_layers.0.cross_attn.o_proj.weight",
        "vision_model.encoder.layers.0.self_attn.out_proj.weight",
        "perceiver_resampler.blocks.0.0.output_proj.weight",
    )} == dict.fromkeys((
        "layers.0.self_attn.o_proj.weight", "gated_cross_attn_layers.0.cross_attn.o_proj.weight",
        "vision_model.encoder.layers.0.self_attn.out_proj.weight",
        "perceiver_resampler.blocks.0.0.output_proj.weight",
    ), 0.5)  # fmt: skip
    assert decays["model.layers.0.mlp.down_proj.weight"] == 0.4
    assert decays["model.perceiver_resampler.blocks.0.1.c_proj.weight"] == 0.4
    assert decays["model.embed_tokens.additional_embedding.weight"] == 0.3
    assert decays["model.vision_model.embeddings.position_embedding.weight"] == 0.3
    assert decays["model.norm.weight"] == 0.2
    assert decays["model.vision_model.encoder.layers.0.layer_norm1.bias"] == 0.2
    assert decays["model.gated_cross_attn_layers.0.alpha_dense"] == 0.05
    assert decays["lm_head.weight"] == decays["lm_head.additional_fc.weight"] == 0.0
    assert decays["model.layers.0.mlp.up_proj.weight"] == 0.1
    assert len(decays) == len(list(model.parameters())) - 2  # the idle norm


def test_gates_of_vectors_do_not_decay_by_default(small_model):
    decays = named_decays(build_optimizer(small_model(gate_type="vector"), config()))
    assert decays["model.gated_cross_attn_layers.0.alpha_dense"] == 0.0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"weight_decay_by_kind": {"o": 0.1}}, "weight_decay_by_kind.o"),
        ({"weight_decay_by_kind": {"fc2": -0.1}}, "weight_decay_by_kind.fc2"),
        ({"weight_decay_by_kind": {"fc2": float("nan")}}, "weight_decay_by_kind.fc2"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(options, field):
    with pytest.raises(ValidationError, match=field):
        config(**options)


def trained(model, options, steps=3):
    optimizer = build_optimizer(model, options)
    for _ in range(steps):
        for number, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, float(number))
        optimizer.step()
    return optimizer


def moments(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def test_moments_find_their_weights_by_name_when_others_learn(small_model):
    before = small_model(freeze=["vision", "language_layers"])
    optimizer = trained(before, config())
    expected = moments(before, optimizer)
    after = small_model(freeze=["resampler", "vision"])
    follower = build_optimizer(after, config())
    follower.load_state_dict(optimizer.state_dict())
    found = moments(after, follower)
    assert {name.split(".")[1] for name in expected.keys() - found.keys()} == {
        "perceiver_resampler"
    }
    assert len(found) > 20
    for name, state in found.items():
        assert torch.equal(state["exp_avg"], expected[name]["exp_avg"]), name
        assert float(state["step"]) == 3.0
    learns = {name for name, parameter in after.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in learns - found.keys()} == {"layers"}
    follower.step()


def test_moments_of_other_groups_are_refused(small_model):
    saved = trained(small_model(), config(), steps=1).state_dict()
    other = build_optimizer(small_model(), config(weight_decay_by_kind={"fc2": 0.4}))
    with pytest.raises(ConfigurationError, match=r"decayed, others, fc2 cannot .* decayed, others"):
        other.load_state_dict(saved)
