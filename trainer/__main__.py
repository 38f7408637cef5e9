"""`python -m trainer`: the commands of the trainer, and the demo, which runs them as processes."""

from __future__ import annotations

from trainer.cli import app
from trainer.demo.story import demo

app.command()(demo)

if __name__ == "__main__":
    app()
