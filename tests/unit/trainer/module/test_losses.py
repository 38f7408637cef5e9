import math

import pytest
import torch
from torch.nn import functional
from transformers.loss.loss_utils import ForCausalLMLoss

from trainer.module.losses import IGNORED_LABEL, token_losses


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator) * 3
    labels = torch.randint(0, 7, (2, 5), generator=generator)
    labels[0, 3:] = IGNORED_LABEL
    labels[1, 1] = IGNORED_LABEL
    return logits, labels


def test_the_mean_is_transformers_own_loss(example):
    logits, labels = example
    losses = token_losses(logits, labels)
    expected = ForCausalLMLoss(logits, labels, vocab_size=7)
    assert torch.allclose(losses.mean(losses.cross_entropy), expected)


def test_z_is_the_square_of_the_log_of_the_partition_sum(example):
    logits, labels = example
    losses = token_losses(logits, labels)
    assert losses.z[0, 0] == pytest.approx(math.log(logits[0, 0].exp().sum()) ** 2, rel=1e-5)
    assert losses.z[0, 2] == 0  # the token after it is not predicted


def test_a_mean_over_some_documents_takes_no_others(example):
    logits, labels = example
    losses = token_losses(logits, labels)
    where = torch.tensor([False, True])[:, None].expand(2, 4)
    expected = functional.cross_entropy(logits[1, :-1], labels[1, 1:])
    assert torch.allclose(losses.mean(losses.cross_entropy, where), expected)


def test_means_of_sources_add_up_to_the_whole(example):
    losses = token_losses(*example)
    counts = losses.counted.sum(dim=1)
    parts = [
        losses.mean(losses.cross_entropy, (torch.arange(2) == row)[:, None]) * counts[row]
        for row in range(2)
    ]
    assert torch.allclose(sum(parts) / counts.sum(), losses.mean(losses.cross_entropy))


def test_documents_in_one_sequence_have_losses_of_their_own(example):
    logits, labels = example
    losses = token_losses(logits, labels)
    numbers = torch.tensor([[0, 0, 0, -1, -1], [1, 1, 1, 2, 2]])
    found, tokens = losses.per_document(numbers, 4)
    each = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
    ).view(2, 4)
    assert found[0] == pytest.approx(each[0, :2].mean())
    assert found[1] == pytest.approx(each[1, 1])
    assert found[2] == pytest.approx(each[1, 2:].mean())
    assert tokens.tolist() == [2, 1, 2, 0]
    assert found[3].isnan()  # a document without a predicted token


def test_a_loss_that_is_not_finite_stays_with_its_document(example):
    logits, labels = example
    logits[1, 3] = math.nan
    numbers = torch.tensor([[0] * 5, [1] * 5])
    found, tokens = token_losses(logits, labels).per_document(numbers, 2)
    assert found[0].isfinite()
    assert found[1].isnan()
    assert tokens[1] > 0


def test_without_a_predicted_token_the_loss_is_zero_and_has_a_gradient():
    logits = torch.randn(1, 4, 7, requires_grad=True)
    losses = token_losses(logits, torch.full((1, 4), IGNORED_LABEL))
    (losses.mean(losses.cross_entropy) + losses.mean(losses.z)).backward()
    assert losses.mean(losses.cross_entropy) == 0
    assert not logits.grad.any()


def test_losses_are_float32_whatever_the_logits_are(example):
    logits, labels = example
    losses = token_losses(logits.bfloat16(), labels)
    assert losses.cross_entropy.dtype == losses.z.dtype == torch.float32


def test_logits_that_are_not_finite_show_in_the_loss(example):
    logits, labels = example
    logits[1, 3] = math.nan
    losses = token_losses(logits, labels)
    assert losses.mean(losses.cross_entropy).isnan()
