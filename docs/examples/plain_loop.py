"""A loop written by hand under Stabilizer: `python docs/examples/plain_loop.py`.

The rules are evaluated in the job (url=None); give the address of a collector to see the run there.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from stabilizer.agent import watch


def main(steps: int = 60, url: str | None = None) -> list[float]:
    """Train a small GPT-2 on a repeating sequence; return the losses."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    tokens = (torch.arange(32)[None] + torch.randint(0, 64, (256, 1))) % 64
    loader = DataLoader(TensorDataset(tokens), batch_size=8, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses = []
    with watch(
        model, optimizers=optimizer, schedulers=[scheduler], loaders=loader, url=url, run="gpt2"
    ) as job:
        for (batch,) in job.batches(steps=steps):
            loss = model(batch, labels=batch).loss
            loss.backward()
            job.after_backward()  # measures gradients before they are clipped
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            job.step(loss)
    return losses


if __name__ == "__main__":
    print(f"loss {main()[-1]:.3f}")
