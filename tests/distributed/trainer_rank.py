"""One rank of two that fit configurations one after the other; started by test_trainer_ranks."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from trainer.config import load_config
from trainer.run import fit


def train(fields, resume):
    try:
        summary = fit(load_config("idefics-tiny", fields=fields), resume=resume)
    except ValueError as error:
        return {"error": str(error)}
    return dataclasses.asdict(summary)


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan = json.loads(sys.argv[1])
    reports = {name: train(fields, resume) for name, (fields, resume) in plan.items()}
    Path(f"{sys.argv[2]}.{os.environ['LOCAL_RANK']}").write_text(json.dumps(reports))
