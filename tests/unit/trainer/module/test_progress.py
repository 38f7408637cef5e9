import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from trainer.module import IdeficsModule, ProgressLine


@pytest.fixture
def module():
    module = IdeficsModule.__new__(IdeficsModule)
    object.__setattr__(module, "last_losses", {"loss": torch.tensor(1.25)})
    return module


def show(module, *, is_terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=100)
    line = ProgressLine(console)
    trainer = SimpleNamespace(max_steps=10, global_step=0)
    line.on_train_start(trainer, module)
    trainer.global_step = 4
    line.on_train_batch_end(trainer, module, None, None, 0)
    line.on_train_end(trainer, module)
    return output.getvalue()


def test_a_terminal_shows_steps_and_loss(module):
    shown = show(module, is_terminal=True)
    assert "4/10" in shown.replace(" ", "")
    assert "loss 1.250" in shown


def test_a_file_gets_nothing(module):
    assert show(module, is_terminal=False) == ""
