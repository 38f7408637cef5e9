"""Documents per second of the training stream, against plain reading of the same Parquet files.

    OMP_NUM_THREADS=1 python benchmarks/data_stream.py [--documents 2000] [--repetitions 3]

The peer reads the row groups one after the other with pyarrow, decodes every picture with PIL and
resizes it, and does no more: no mixture, no random order, no tokens, no masks, no batches, no
resuming. Two corpora: digits of 8x8 pixels, where everything but decoding shows, and photographs
of 640x480 (noise and gradients, JPEG), where decoding is most of the work, as in real life. All
arms take turns within one run, by the wall clock; medians are compared, and the ratio is the number
that travels between machines. With workers, the start of the processes is counted.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from trainer.config import load_config
from trainer.data import StreamLoader, open_tokenizer, open_training_stream
from trainer.data.making import make_corpus
from trainer.data.sources.parquet import SCHEMA

SOURCES = {"web_documents": 3, "image_text_pairs": 1}
SIZE = {"digits": 16, "photographs": 224}
PACKED = {"data.packing": {"documents": 32, "rows": 12}, "data.sequence_length": 112}


def make_photographs(folder: Path, digits: Path, documents: int) -> None:
    """Write the digits' texts beside photographs."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(64):
        slope = np.linspace(0, 255, 640, dtype=np.float32)[None, :, None]
        noise = random.normal(0, 12, (480, 640, 3)) + slope * random.random(3)
        stream = io.BytesIO()
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
        files.append({"bytes": stream.getvalue(), "path": None})
    for source in SOURCES:
        rows = pq.read_table(digits / source).to_pylist()[:documents]
        for row in rows:
            row["images"] = [
                files[random.integers(64)] if image else None for image in row["images"]
            ]
        (folder / source).mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, folder / source / "part.parquet", row_group_size=64)
    (folder / "tokenizer.json").write_bytes((digits / "tokenizer.json").read_bytes())


def read_plainly(folder: Path, size: int, documents: int) -> int:
    count = 0
    while True:
        for source in SOURCES:
            for path in sorted((folder / source).glob("*.parquet")):
                with pq.ParquetFile(path) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, columns=["images", "texts"])
                        for images, _ in zip(
                            table["images"].to_pylist(), table["texts"].to_pylist(), strict=True
                        ):
                            for image in images:
                                if image is not None:
                                    decode(image["bytes"], size)
                            count += 1
                            if count == documents:
                                return count


def decode(content: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def make_stream_arm(
    folder: Path, size: int, documents: int, workers: int, packed: bool
) -> Callable[[], int]:
    fields = {"data.folder": str(folder), "data.sources": SOURCES, "data.max_images": 8}
    config = load_config("idefics-tiny", fields=fields | (PACKED if packed else {})).data

    def run() -> int:
        stream = open_training_stream(config, open_tokenizer(config), image_size=size, seed=0)
        rows = documents * 12 // 32 if packed else documents
        loader = StreamLoader(stream, batch_size=8, workers=workers, epoch_samples=rows - rows % 8)
        count = 0
        for batch in loader:
            count += len(batch["sample_ids"])
        return count

    return run


def measure(arms: dict[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """Return documents per second by arm."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            count = arm()
            if repetition:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        digits, photographs = Path(name) / "digits", Path(name) / "photographs"
        make_corpus(digits, documents=max(options.documents, 100), seed=0)
        make_photographs(photographs, digits, 400)
        table = Table("corpus", "arm", "documents/s", "ratio to the peer", title="data stream")
        for corpus, folder in (("digits", digits), ("photographs", photographs)):
            documents = options.documents if corpus == "digits" else options.documents // 8
            size = SIZE[corpus]
            arms: dict[str, Callable[[], int]] = {
                "plain pyarrow + PIL": partial(read_plainly, folder, size, documents)
            }
            for workers in (0, 2):
                for packed in (False, True):
                    label = f"stream, {workers} workers" + (", packed" if packed else "")
                    arms[label] = make_stream_arm(folder, size, documents, workers, packed)
            rates = measure(arms, options.repetitions)
            plain = rates["plain pyarrow + PIL"]
            for arm, rate in rates.items():
                table.add_row(corpus, arm, f"{rate:,.0f}", f"{rate / plain:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
