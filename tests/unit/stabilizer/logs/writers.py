"""Writes the same rows in every format, as its program does."""

import json
import struct

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c


def csv_text(rows):
    lines = ["step,loss,grad_norm,learning_rate,note"]
    lines += [f"{step},{loss},{norm},0.001,hello" for step, loss, norm in rows]
    return ("\n".join(lines) + "\n").encode()


def jsonl_text(rows):
    lines = [
        json.dumps({"_step": step, "train": {"loss": loss}, "train/grad_norm": norm, "host": "a"})
        for step, loss, norm in rows
    ]
    return ("\n".join(lines) + "\n").encode()


def state_text(rows):
    history = [
        {"epoch": 0.1, "grad_norm": norm, "learning_rate": 1e-3, "loss": loss, "step": step}
        for step, loss, norm in rows
    ]
    summary = {"train_loss": 99.0, "train_runtime": 1.0, "step": rows[-1][0] if rows else 0}
    state = {"best_metric": None, "global_step": 9, "log_history": [*history, summary], "x": [1]}
    return json.dumps(state, indent=2).encode()


def event_bytes(rows):
    out = []
    for step, loss, norm in [(0, None, None), *rows]:
        event = Event(wall_time=1.7e9 + step, step=step)
        if loss is None:
            event.file_version = "brain.Event:2"
        else:
            event.summary.value.add(tag="train/loss", simple_value=loss)
            event.summary.value.add(tag="train/grad_norm", simple_value=norm)
            event.summary.value.add(tag="histogram").histo.min = 1.0
        data = event.SerializeToString()
        head = struct.pack("<Q", len(data))
        out += [head, struct.pack("<I", masked_crc32c(head)), data]
        out.append(struct.pack("<I", masked_crc32c(data)))
    return b"".join(out)


def megatron_text(rows):
    return "".join(
        f"[2025-10-21 16:18:53] iteration {step:8d}/   20000 | consumed samples:  3264 | elapsed "
        f"time per iteration (ms): 6049.0 | learning rate: 2.550000E-06 | global batch size:    64 "
        f"| lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: {norm:.3f} | number of skipped "
        "iterations:   0 | number of nan iterations:   0 |\ntime (ms) | forward: 53.79\n"
        for step, loss, norm in rows
    ).encode()


def torchtitan_text(rows):
    return "".join(
        f"[rank0]:\x1b[32m[titan] 2025-06-04 08:51:48,074 - root - INFO - step: {step:2}  "
        f"loss: {loss:7.4f}  grad_norm: {norm:7.4f}  memory: 30.99GiB(32.62%)  tps: 7,034  "
        "tflops: 407.35  mfu: 41.19%\x1b[39m\n"
        f"[titan] - INFO - validate step: {step:2}  loss: 77.0  memory: 1GiB(1%)  tps: 1\n"
        for step, loss, norm in rows
    ).encode()


def nanogpt_text(rows):
    return "".join(
        f"step {step}: train loss 9.0000, val loss 8.0000\n"
        f"iter {step}: loss {loss:.4f}, time 85.25ms, mfu 9.40%\n"
        for step, loss, _ in rows
    ).encode()


def deepspeed_text(rows):
    return "".join(
        f"[2023-08-02 00:41:00,000] [INFO] [logging.py:96:log_dist] [Rank 0] step={step}, "
        "skipped=0, lr=[0.00016, 0.00016], mom=[(0.9, 0.95)]\n"
        f"steps: {step} loss: {loss:0.4f} iter time (s): 0.936 samples/sec: 136.706\n"
        for step, loss, _ in rows
    ).encode()


WRITERS = {
    "tensorboard": ("events.out.tfevents.1.host", event_bytes),
    "trainer_state": ("trainer_state.json", state_text),
    "jsonl": ("history.jsonl", jsonl_text),
    "csv": ("run.csv", csv_text),
    "megatron": ("megatron.log", megatron_text),
    "torchtitan": ("titan.log", torchtitan_text),
    "nanogpt": ("nano.log", nanogpt_text),
    "deepspeed": ("ds.log", deepspeed_text),
}
ROWS = [(step, 4.0 - 0.125 * step, 0.5 + 0.25 * step) for step in range(1, 9)]


def write(folder, name, rows, cut=None):
    file_name, writer = WRITERS[name]
    path = folder / file_name
    path.write_bytes(writer(rows)[:cut])
    return path
