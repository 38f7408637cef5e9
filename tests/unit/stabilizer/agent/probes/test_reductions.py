import math

import pytest
import torch

from stabilizer.agent.probes import reductions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l2_norm_in_float32_for_every_precision(dtype):
    tensor = torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = reductions.l2_norm(tensor)
    assert norm.dtype is torch.float32
    assert norm.shape == ()
    assert norm.item() == pytest.approx(tensor.double().norm().item(), rel=1e-6)


def test_half_precision_does_not_overflow():
    tensor = torch.full(
        (100_000,), 60_000.0, dtype=torch.float16
    )  # its norm is 1.9e7, its max 65504
    assert reductions.l2_norm(tensor).item() == pytest.approx(60_000 * math.sqrt(100_000), rel=1e-5)
    (norm,) = reductions.l2_norms([tensor])
    assert norm.item() == pytest.approx(60_000 * math.sqrt(100_000), rel=1e-5)


def test_a_sum_of_many_bfloat16_values_is_not_rounded_to_bfloat16():
    tensor = torch.ones(1_000_000, dtype=torch.bfloat16)
    assert reductions.l2_norm(tensor).item() == pytest.approx(1000.0, rel=1e-6)


def test_nan_and_inf_show():
    assert reductions.l2_norm(torch.tensor([1.0, math.nan])).isnan()
    assert reductions.l2_norm(torch.tensor([1.0, -math.inf])).isinf()
    assert reductions.z_loss(torch.tensor([[1.0, math.nan]])).isnan()
    assert reductions.z_loss(torch.tensor([[1.0, math.inf]])).isinf()


def test_norms_of_many_in_order_and_mixed_precision():
    tensors = [
        torch.full((4,), 2.0, dtype=torch.bfloat16),
        torch.full((3, 3), 1.0),
        torch.full((1,), 5.0, dtype=torch.float64),
        torch.tensor([math.nan], dtype=torch.float16),
    ]
    norms = reductions.l2_norms(tensors)
    assert norms.dtype is torch.float32
    assert norms[:3].tolist() == [4.0, 3.0, 5.0]
    assert norms[3].isnan()


def test_z_loss_is_that_of_float64(monkeypatch):
    logits = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0)) * 5
    expected = torch.logsumexp(logits.double(), -1).square().mean().item()
    assert reductions.z_loss(logits).item() == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(reductions, "MAX_CHUNK_ELEMENTS", 120)  # two rows in a slice
    assert reductions.z_loss(logits).item() == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(reductions, "MAX_CHUNK_ELEMENTS", 1)
    assert reductions.z_loss(logits).item() == pytest.approx(expected, rel=1e-6)


def test_z_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = (torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    expected = torch.logsumexp(logits.double(), -1).square().mean().item()
    assert reductions.z_loss(logits).item() == pytest.approx(expected, rel=1e-6)


def test_no_graph_is_kept():
    weight = torch.ones(3, requires_grad=True)
    with reductions.measuring(weight):
        assert not reductions.z_loss((weight * 2)[None]).requires_grad
    assert not reductions.l2_norm(weight).requires_grad


def test_measuring_disables_autocast_within_and_restores_it_after():
    tensor = torch.ones(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with reductions.measuring(tensor):
            assert (tensor @ tensor).dtype is torch.float32
        assert (tensor @ tensor).dtype is torch.bfloat16


def test_what_is_measurable():
    assert reductions.is_measurable(torch.ones(2))
    assert reductions.is_measurable(torch.tensor(math.nan, dtype=torch.bfloat16))
    for other in (
        None,
        1.0,
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(0, 3),
        torch.ones(2).to_sparse(),
        torch.empty(2, device="meta"),
    ):
        assert not reductions.is_measurable(other)
