import math

import pytest
import torch

from stabilizer.agent.probes import attention
from stabilizer.agent.probes.attention import Masking, fits, summarize


def _tensors(*, batch=2, heads=4, keys_heads=4, queries=9, keys=9, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, dim, generator=generator) * 2
    key = torch.randn(batch, keys_heads, keys, dim, generator=generator) * 2
    return query, key


def _reference(query, key, scale, visible, bias=0.0):
    """Per-head entropy sums, counts and the largest logit, one query at a time, in float64."""
    batch, heads, positions, _ = query.shape
    key = key.double().repeat_interleave(heads // key.shape[1], dim=1)
    logits = query.double() @ key.transpose(-1, -2) * scale
    bias = torch.as_tensor(bias, dtype=torch.float64).expand(logits.shape)
    visible = visible.expand(logits.shape)
    sums, counts, largest = [0.0] * heads, [0] * heads, -math.inf
    for b in range(batch):
        for h in range(heads):
            for q in range(positions):
                seen = visible[b, h, q]
                if seen.any():
                    largest = max(largest, logits[b, h, q][seen].max().item())
                if seen.sum() >= 2:
                    p = (logits[b, h, q] + bias[b, h, q])[seen].softmax(-1)
                    sums[h] += -(p * p.log()).sum().item() / math.log(int(seen.sum()))
                    counts[h] += 1
    return sums, counts, largest, int(visible.sum())


def _check(summary, reference):
    sums, counts, largest, pairs = reference
    heads = len(sums)
    assert summary.shape == (2 * heads + 2,)
    assert summary.dtype is torch.float32
    assert summary[:heads].tolist() == pytest.approx(sums, rel=2e-5)
    assert summary[heads : 2 * heads].tolist() == counts
    assert summary[-2].item() == pytest.approx(largest, rel=1e-5)
    assert summary[-1].item() == pairs


def test_without_a_mask():
    query, key = _tensors(queries=5, keys=7)
    everything = torch.ones(5, 7, dtype=torch.bool)
    _check(summarize(query, key, 0.3, Masking(), 64), _reference(query, key, 0.3, everything))


def test_heads_that_share_keys():
    query, key = _tensors(heads=6, keys_heads=2)
    everything = torch.ones(9, 9, dtype=torch.bool)
    _check(summarize(query, key, 0.3, Masking(), 64), _reference(query, key, 0.3, everything))


def test_causal_leaves_the_first_query_out_of_the_entropy_only():
    query, key = _tensors()
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    _check(
        summarize(query, key, 0.3, Masking(causal=True), 64), _reference(query, key, 0.3, visible)
    )


def test_causal_aligned_at_the_last_position_and_windowed():
    query, key = _tensors(queries=4, keys=9)
    visible = torch.ones(4, 9, dtype=torch.bool).tril(5)
    masking = Masking(causal=True, offset=5)
    _check(summarize(query, key, 0.3, masking, 64), _reference(query, key, 0.3, visible))
    windowed = visible & ~torch.ones(4, 9, dtype=torch.bool).tril(2)
    masking = Masking(causal=True, offset=5, window=3)
    _check(summarize(query, key, 0.3, masking, 64), _reference(query, key, 0.3, windowed))


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (1, 1, 9, 9), (2, 4, 9, 9), (2, 1, 1, 9)])
@pytest.mark.parametrize("form", ["bool", "lowest", "inf", "ten_thousand"])
def test_masks_of_every_shape_and_form(shape, form):
    query, key = _tensors()
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.6
    mask = visible
    if form != "bool":
        low = {"lowest": torch.finfo(torch.float32).min, "inf": -math.inf, "ten_thousand": -10_000}
        mask = torch.zeros(shape).masked_fill(~visible, low[form])
    _check(summarize(query, key, 0.3, Masking(mask=mask), 64), _reference(query, key, 0.3, visible))


def test_padding_mask_of_two_axes():
    query, key = _tensors()
    padding = torch.ones(2, 9, dtype=torch.int64)
    padding[1, 5:] = 0
    _check(
        summarize(query, key, 0.3, Masking(mask=padding), 64),
        _reference(query, key, 0.3, padding.bool()[:, None, None, :]),
    )


def test_a_bias_counts_for_the_entropy_and_not_for_the_logit():
    query, key = _tensors()
    bias = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(2)) * 3
    everything = torch.ones(9, 9, dtype=torch.bool)
    _check(
        summarize(query, key, 0.3, Masking(mask=bias), 64),
        _reference(query, key, 0.3, everything, bias),
    )


def test_softcap():
    query, key = _tensors(batch=1, heads=1, keys_heads=1)
    summary = summarize(query, key, 1.0, Masking(softcap=0.001), 64)
    assert (summary[0] / summary[1]).item() == pytest.approx(1.0, abs=1e-4)  # all but uniform
    assert summary[2].item() == pytest.approx((query @ key.mT).amax().item(), rel=1e-5)


@pytest.mark.parametrize(("queries", "limit"), [(9, 4), (10, 3), (64, 64), (65, 64), (7, 1)])
def test_the_sample_is_even_small_enough_and_ends_with_the_last_query(queries, limit):
    query, key = _tensors(queries=queries, keys=queries)
    stride = -(-queries // limit)
    rows = list(range(queries - 1, -1, -stride))[::-1]
    assert len(rows) <= limit
    visible = torch.ones(queries, queries, dtype=torch.bool).tril()
    sampled = _reference(query[:, :, rows], key, 0.3, visible[rows])
    _check(summarize(query, key, 0.3, Masking(causal=True), limit), sampled)
    mask = Masking(mask=visible[None, None])
    _check(summarize(query, key, 0.3, mask, limit), sampled)


def test_large_attentions_are_taken_in_slices(monkeypatch):
    query, key = _tensors(batch=5)
    visible = torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(3)) > 0.6
    monkeypatch.setattr(attention, "MAX_CHUNK_ELEMENTS", 2 * 4 * 9 * 9)  # two of the batch
    _check(
        summarize(query, key, 0.3, Masking(mask=visible), 64),
        _reference(query, key, 0.3, visible),
    )


def test_a_scale_on_the_device():
    query, key = _tensors()
    number = summarize(query, key, 0.3, Masking(), 64)
    assert torch.equal(summarize(query, key, torch.tensor([0.3]), Masking(), 64), number)


def test_a_hidden_key_with_nan_shows_as_it_does_in_the_model():
    query, key = _tensors()
    key[0, 1, 8, 0] = math.nan
    summary = summarize(query, key, 0.3, Masking(causal=True), 64)
    assert summary[1].isnan()
    assert torch.isfinite(summary[[0, 2, 3]]).all()


def test_bounds_of_the_normalised_entropy():
    flat = summarize(torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 6, 4), 1.0, Masking(), 64)
    assert (flat[0] / flat[1]).item() == pytest.approx(1.0)
    key = torch.eye(4)[None, None] * 1000
    peaked = summarize(torch.ones(1, 1, 1, 4) * key[..., :1, :], key, 1.0, Masking(), 64)
    assert (peaked[0] / peaked[1]).item() == 0.0


def test_counts_are_zero_when_nothing_is_visible():
    query, key = _tensors()
    summary = summarize(query, key, 0.3, Masking(mask=torch.zeros(1, 1, 9, 9).bool()), 64)
    assert summary[:4].tolist() == [0.0] * 4
    assert summary[4:8].tolist() == [0.0] * 4
    assert summary[-1].item() == 0
    lonely = summarize(query, key[:, :, :1], 0.3, Masking(), 64)  # one key: no entropy, but a logit
    assert lonely[4:8].tolist() == [0.0] * 4
    assert lonely[-1].item() == 2 * 4 * 9


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_show_in_the_head_they_are_in(bad):
    query, key = _tensors()
    query[0, 2, 8, 0] = bad
    summary = summarize(query, key, 0.3, Masking(causal=True), 64)
    assert not math.isfinite(summary[2].item())
    assert torch.isfinite(summary[[0, 1, 3]]).all()
    assert not math.isfinite(summary[-2].item())


def test_half_precision_is_computed_in_float32():
    query, key = (t.bfloat16() for t in _tensors())
    visible = torch.ones(9, 9, dtype=torch.bool)
    _check(summarize(query, key, 0.3, Masking(), 64), _reference(query, key, 0.3, visible))
    large = torch.full((1, 1, 2, 64), 300.0, dtype=torch.float16)  # dot products of 5.8e6
    assert summarize(large, large, 1.0, Masking(), 64)[-2].item() == pytest.approx(64 * 9e4)


def test_other_shapes_do_not_fit():
    query, key = _tensors()
    assert fits(query, key, None)
    assert fits(query, key, torch.zeros(2, 1, 9, 12))  # longer than the keys: a static cache
    assert not fits(query, None, None)
    assert not fits(query[0], key[0], None)
    assert not fits(query, key[:, :3], None)
    assert not fits(query[:, :, :0], key, None)
    assert not fits(query, key[:1], None)
    assert not fits(query, key, "block mask")
    assert not fits(query, key, torch.zeros(2, 1, 9, 8))
    assert not fits(query, key, torch.zeros(2, 1, 4, 9))
    assert not fits(query, key, torch.zeros(3, 9))
    assert not fits(query, key, torch.zeros(2, 1, 9, 9, dtype=torch.int64))
