import pytest
import torch
from torch import nn

from stabilizer.agent.probes.attention_sources import AttentionTap, uses_interface


@pytest.fixture
def registry():
    modeling = pytest.importorskip("transformers.modeling_utils")
    return modeling.ALL_ATTENTION_FUNCTIONS


def _attentions(model):
    return {
        name: m for name, m in model.named_modules() if name.endswith((".self_attn", ".cross_attn"))
    }


def _tap(model, shown):
    def show(name):
        return lambda call: shown.append((name, call))

    return AttentionTap({module: show(name) for name, module in _attentions(model).items()})


def test_who_uses_the_interface(make_idefics):
    model = make_idefics()
    assert all(uses_interface(module) for module in _attentions(model).values())
    assert not uses_interface(nn.MultiheadAttention(4, 1))
    assert not uses_interface(nn.Linear(2, 2))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_calls_are_shown_as_they_were_made(make_idefics, batch, implementation, registry):
    model, shown = make_idefics(implementation), []
    tap = _tap(model, shown)
    tap.open()
    tap.open()
    model(**batch)
    tap.close()
    model(**batch)  # closed: nothing more

    calls = dict(shown)
    assert len(shown) == len(calls) == len(_attentions(model))
    vision = calls["model.vision_model.encoder.layers.0.self_attn"]
    assert vision.query.shape == (4, 2, 5, 8)
    assert vision.masking.mask is None
    assert not vision.masking.causal
    text = calls["model.layers.0.self_attn"]
    assert text.query.shape == (2, 4, 10, 8)
    assert text.scale == pytest.approx(8**-0.5)
    assert text.masking.mask is not None
    assert not text.masking.causal
    cross = calls["model.gated_cross_attn_layers.0.cross_attn"]
    assert cross.key.shape == (2, 4, 8, 8)
    assert cross.masking.mask.shape == (2, 1, 10, 8)


def test_causal_without_a_mask_as_sdpa_takes_it(make_idefics, batch):
    model, shown = make_idefics("sdpa"), []
    tap = _tap(model, shown)
    tap.open()
    model(**(batch | {"attention_mask": None}))
    tap.close()
    text = dict(shown)["model.layers.0.self_attn"]
    assert text.masking.mask is None
    assert text.masking.causal
    assert text.masking.offset == 0


def test_nothing_of_the_model_or_the_library_stays_changed(make_idefics, batch, registry):
    model = make_idefics("eager")
    before = dict(vars(registry)), dict(registry), repr(model.config)
    lookup = registry.get_interface
    tap = _tap(model, [])
    tap.open()
    assert registry.get_interface != lookup
    model(**batch)
    assert model.config._attn_implementation == "eager"
    tap.close()
    tap.close()
    assert (dict(vars(registry)), dict(registry), repr(model.config)) == before
    assert registry.get_interface == lookup


def test_two_taps_in_any_order(make_idefics, batch, registry):
    lookup = registry.get_interface
    one, other, shown_one, shown_other = make_idefics(), make_idefics(), [], []
    first, second = _tap(one, shown_one), _tap(other, shown_other)
    first.open()
    second.open()
    one(**batch)
    first.close()
    one(**batch)
    other(**batch)
    second.close()
    assert len(shown_one) == len(shown_other) == len(_attentions(one))
    assert registry.get_interface == lookup


def test_a_lookup_replaced_by_other_code_is_restored(make_idefics, batch, registry):
    asked = []

    def theirs(name, default):
        asked.append(name)
        return type(registry).get_interface(registry, name, default)

    registry.get_interface = theirs
    try:
        shown = []
        tap = _tap(make_idefics(), shown)
        tap.open()
        make_idefics()(**batch)
        tap.close()
        assert registry.get_interface is theirs
        assert asked
    finally:
        del registry.get_interface


def test_an_attention_that_fails_fails_as_before(make_idefics, batch, registry):
    model, shown = make_idefics(), []

    def broken(*args, **kwargs):
        raise RuntimeError("kernel")

    registry["sdpa"] = broken
    tap = _tap(model, shown)
    tap.open()
    try:
        with pytest.raises(RuntimeError, match="kernel"):
            model(**batch)
    finally:
        tap.close()
        del registry["sdpa"]
    assert shown == []


def test_unknown_terms_and_forms_are_left_out():
    module, shown = nn.Linear(1, 1), []
    tap = AttentionTap({module: shown.append})
    states = torch.ones(1, 2, 3, 4)
    call = {"module": module, "query": states, "key": states, "value": states}
    tap.report("sdpa", call | {"position_bias": states})
    tap.report("eager", call | {"s_aux": torch.ones(2)})
    tap.report("flex_attention", call | {"attention_mask": object()})
    tap.report("sdpa", call | {"query": None})
    tap.report("sdpa", call | {"scaling": torch.ones(2, 1, 1)})
    tap.report("sdpa", call | {"module": None})
    tap.report("sdpa", {})
    tap.report("sdpa", call | {"module": nn.Linear(1, 1)})
    assert shown == []


def test_how_flash_attention_masks():
    module, shown = nn.Linear(1, 1), []
    tap = AttentionTap({module: shown.append})
    query, key = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 5, 4)
    call = {"module": module, "query": query, "key": key, "sliding_window": 2, "softcap": 30.0}
    tap.report("flash_attention_2", call | {"scaling": None})
    tap.report("flash_attention_2", call | {"is_causal": False, "scaling": 0.5})
    tap.report("eager", call)
    flash, open_flash, eager = shown
    assert (flash.masking.causal, flash.masking.offset, flash.masking.window) == (True, 2, 2)
    assert flash.scale == 0.5
    assert not open_flash.masking.causal
    assert open_flash.scale == 0.5
    assert (eager.masking.causal, eager.masking.offset, eager.masking.window) == (False, 0, None)
    assert eager.masking.softcap == 30.0


def test_a_learned_scale_is_not_waited_for():
    module, shown = nn.Linear(1, 1), []
    tap = AttentionTap({module: shown.append})
    states, scale = torch.ones(1, 2, 3, 4), torch.tensor(0.5)
    tap.report("sdpa", {"module": module, "query": states, "key": states, "scaling": scale})
    assert shown[0].scale is scale


def test_a_lookup_by_keyword(registry):
    module, shown = nn.Linear(1, 1), []
    tap = AttentionTap({module: shown.append})
    tap.open()
    states = torch.ones(1, 2, 3, 4)
    attend = registry.get_interface(attn_implementation="eager", default=lambda *_, **__: "output")
    assert attend(module, query=states, key=states, value=states, attention_mask=None) == "output"
    tap.close()
    assert len(shown) == 1
