"""Bad data in a job that is not ours: any dataset that knows its positions."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainer.faults import BadDocuments, RepeatedDocuments

WORDS = range(2, 12)  # 0 and 1 are special


class Counting(Dataset):
    """Texts in which a word is followed by the next one; the position may be another's."""

    def __init__(self, tokens=None, position=None):
        self.tokens, self.position, self.asked = tokens, position, []

    def __len__(self):
        return 80

    def __getitem__(self, index):
        read = index if self.position is None else self.position(index)
        text = [0, *(2 + (read + i) % len(WORDS) for i in range(8)), 1]
        self.asked.append(read)
        return torch.tensor(text if self.tokens is None else self.tokens(index, text))


class Bigrams(LightningModule):
    """Learns which word follows which."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 12)
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(
            self.table(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        )
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.3)


def train(dataset):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    job = Bigrams()
    trainer.fit(job, DataLoader(dataset, batch_size=4))
    return job.seen


def test_garbage_makes_the_loss_of_its_steps_jump_and_no_other_before():
    whole = train(Counting())
    fault = BadDocuments(first_sample=40, samples=8, replacements=list(WORDS))
    broken = train(Counting(tokens=fault))
    assert broken[:10] == whole[:10]
    assert min(broken[10:12]) > whole[9] + 1
    assert len(broken) == len(whole) == 20


@pytest.mark.parametrize("distinct", [1, 3])
def test_repeated_documents_are_those_that_the_dataset_reads(distinct):
    dataset = Counting(position=RepeatedDocuments(first_sample=40, samples=8, distinct=distinct))
    train(dataset)
    assert len(set(dataset.asked[40:48])) == distinct
    assert dataset.asked[:40] + dataset.asked[48:] == [*range(40), *range(48, 80)]
