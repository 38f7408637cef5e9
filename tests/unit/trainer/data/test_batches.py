import hashlib

import torch

from trainer.data import collate

# Of the tiny preset: whoever changes it moves every run that is tuned on these batches.
GOLDEN = "63ab4ba0b54feee29d413de340b3c73d8334321cd358c8ea2a51d77ba5df7366"
TENSORS = ("input_ids", "attention_mask", "labels", "image_attention_mask", "pixel_values")


def test_batches_of_the_preset_stay_as_they_are_to_a_bit(make_stream):
    stream = make_stream()
    batch = collate([stream.read(position) for position in range(64)])
    digest = hashlib.sha256(b"".join(batch[name].numpy().tobytes() for name in TENSORS))
    digest.update(repr((batch["positions"], batch["sample_ids"], batch["source"])).encode())
    assert digest.hexdigest() == GOLDEN


def test_without_packing_a_document_is_a_row(make_batch):
    batch = make_batch(size=5)
    assert batch["rows"] == [0, 1, 2, 3, 4]
    numbers = torch.arange(5)[:, None].expand_as(batch["document_ids"])
    expected = torch.where(batch["attention_mask"] == 1, numbers, -1)
    assert torch.equal(batch["document_ids"], expected)
    assert batch["tokens"] == int(batch["attention_mask"].sum())


def test_every_token_knows_its_source(make_batch):
    batch = make_batch(size=8)
    assert batch["source_names"] == ["image_text_pairs", "web_documents"]
    for row, source in enumerate(batch["source"]):
        ids = batch["source_ids"][row]
        length = int(batch["attention_mask"][row].sum())
        assert {batch["source_names"][i] for i in ids[:length].tolist()} == {source}
        assert set(ids[length:].tolist()) <= {-1}


def test_packed_documents_are_numbered_over_the_batch(make_batch):
    packed = {"data.packing": {"documents": 8, "rows": 3}, "data.sequence_length": 128}
    batch = make_batch(size=3, **packed, **{"data.max_images": 8})
    assert len(batch["sample_ids"]) == len(batch["source"]) == len(batch["rows"]) == 8
    assert sorted(batch["rows"]) == batch["rows"]
    for row in range(3):
        tokens = batch["document_ids"][row][batch["attention_mask"][row] == 1].tolist()
        assert sorted(tokens) == tokens
        assert [batch["rows"][number] for number in dict.fromkeys(tokens)] == [row] * len(
            set(tokens)
        )
        for number in set(tokens):
            (source,) = set(batch["source_ids"][row][batch["document_ids"][row] == number].tolist())
            assert batch["source_names"][source] == batch["source"][number]
