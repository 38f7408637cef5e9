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


def test_a_file_gets_nothing_of_a_short_job(module):
    assert show(module, is_terminal=False) == ""


class Clock:
    at = 100.0

    def monotonic(self):
        return self.at


def test_a_log_gets_a_line_now_and_then(module):
    output, clock = io.StringIO(), Clock()
    line = ProgressLine(Console(file=output, width=100), clock=clock, log_seconds=60)
    trainer = SimpleNamespace(max_steps=1000, global_step=100)
    line.on_train_start(trainer, module)
    for _ in range(6):
        trainer.global_step += 20
        clock.at += 25
        line.on_train_batch_end(trainer, module, None, None, 0)
    assert output.getvalue().splitlines() == [
        "step 160/1000 loss 1.250 0.80 steps/s, 18 min left",
        "step 220/1000 loss 1.250 0.80 steps/s, 16 min left",
    ]


def test_a_job_that_was_rewound_says_so(module):
    output, clock = io.StringIO(), Clock()
    line = ProgressLine(Console(file=output, width=100), clock=clock, log_seconds=60)
    trainer = SimpleNamespace(max_steps=-1, global_step=100)
    line.on_train_start(trainer, module)
    trainer.global_step, clock.at = 50, 200.0
    line.on_train_batch_end(trainer, module, None, None, 0)
    assert output.getvalue() == "step 50 loss 1.250 rewound from step 100\n"
