"""One rank that reads streams, restores in the middle, and skips; for test_stream_ranks."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from trainer.config import load_config
from trainer.data import StreamLoader, open_tokenizer, open_training_stream

BATCHES = 3


def make_loader(folder, packing, rank, world):
    fields = {"data.folder": folder, "data.packing": packing}
    if packing:
        fields |= {"data.sequence_length": 112, "data.max_images": 8}
    config = load_config("idefics-tiny", fields=fields).data
    stream = open_training_stream(config, open_tokenizer(config), image_size=16, seed=0)
    return StreamLoader(
        stream,
        batch_size=2,
        epoch_samples=10 * 2 * world,
        workers=rank,
        rank=rank,
        world_size=world,
    )


def read(loader, batches):
    iterator = iter(loader)
    found = [next(iterator) for _ in range(batches)]
    return [
        [batch["positions"], batch["sample_ids"], batch["input_ids"].tolist()] for batch in found
    ]


def read_over_a_restore_and_a_skip(folder, packing):
    """Return what each rank has read; on rank 0 only."""
    rank, world = dist.get_rank(), dist.get_world_size()
    loader = make_loader(folder, packing, rank, world)
    found = read(loader, BATCHES)
    # As after a checkpoint: all ranks load the state of rank 0.
    state = [loader.state_dict()]
    dist.broadcast_object_list(state, src=0)
    fresh = make_loader(folder, packing, rank, world)
    fresh.load_state_dict(state[0])
    found += read(fresh, BATCHES)
    fresh.skip_samples(8)
    found += read(fresh, 1)
    gathered = [None] * world
    dist.all_gather_object(gathered, found)
    return gathered


def main(folder, packings, out):
    dist.init_process_group("gloo")
    found = [read_over_a_restore_and_a_skip(folder, packing) for packing in json.loads(packings)]
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
