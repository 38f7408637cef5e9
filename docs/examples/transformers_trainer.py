"""transformers' Trainer under Stabilizer: `python docs/examples/transformers_trainer.py`.

The rules are evaluated in the job (url=None); give the address of a collector to see the run there.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from stabilizer.agent import watch_trainer


def main(steps: int = 60, url: str | None = None) -> list[float]:
    """Train a small GPT-2 on a repeating sequence; return the losses."""
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    texts = [(torch.arange(32) + start) % 64 for start in range(256)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=GPT2LMHeadModel(config),
            args=TrainingArguments(
                folder,
                max_steps=steps,
                learning_rate=3e-3,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=[{"input_ids": text, "labels": text} for text in texts],
        )
        watch_trainer(trainer, url=url, run="gpt2-trainer")  # the only line that Stabilizer needs
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(f"loss {float(main()[-1]):.3f}")
