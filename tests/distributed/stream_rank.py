"""One rank that reads the stream, is restored in the middle, and skips; for test_stream_ranks."""

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


def main(folder, packing, out):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    loader = make_loader(folder, json.loads(packing), rank, world)
    read_so_far = read(loader, BATCHES)
    # As after a checkpoint: rank 0's word is everybody's.
    state = [loader.state_dict()]
    dist.broadcast_object_list(state, src=0)
    fresh = make_loader(folder, json.loads(packing), rank, world)
    fresh.load_state_dict(state[0])
    read_so_far += read(fresh, BATCHES)
    fresh.skip_samples(8)
    read_so_far += read(fresh, 1)
    gathered = [None] * world
    dist.all_gather_object(gathered, read_so_far)
    if rank == 0:
        Path(out).write_text(json.dumps(gathered))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
