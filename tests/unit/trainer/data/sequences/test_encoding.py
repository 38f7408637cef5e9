import io

import pytest
import torch
from PIL import Image
from transformers.models.idefics.processing_idefics import (
    image_attention_mask_for_packed_input_ids,
    incremental_to_binary_attention_mask,
)

from trainer.data.documents import BadDocumentError, Document
from trainer.data.sequences import IGNORED_LABEL, SequenceEncoder
from trainer.data.tokenizer import AROUND_IMAGE, BOS, EOS, IMAGE, PAD

BLACK, WHITE = 0, 255


def png(level=WHITE, size=(8, 8), mode="L"):
    stream = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(stream, format="PNG")
    return stream.getvalue()


def document(*parts):
    return Document("web/x.parquet:0", "web", parts)


@pytest.fixture
def encoder(tokenizer):
    return SequenceEncoder(tokenizer, sequence_length=24, max_images=2, image_size=16)


@pytest.fixture
def ids(tokenizer):
    return {token: tokenizer.special(token) for token in (PAD, BOS, EOS, AROUND_IMAGE, IMAGE)}


def test_a_picture_stands_between_its_tokens(encoder, tokenizer, ids):
    sample = encoder.encode(document("one", png(), "two"), 0)
    expected = [
        ids[BOS],
        *tokenizer.encode("one"),
        *(ids[AROUND_IMAGE], ids[IMAGE], ids[AROUND_IMAGE]),
        *tokenizer.encode("two"),
        ids[EOS],
    ]
    length = len(expected)
    assert sample.input_ids.tolist() == expected + [ids[PAD]] * (24 - length)
    assert sample.attention_mask.tolist() == [1] * length + [0] * (24 - length)


def test_pictures_in_a_row_share_the_token_between_them(encoder, ids):
    tokens = encoder.encode(document(png(), png()), 0).input_ids.tolist()[:7]
    around, image = ids[AROUND_IMAGE], ids[IMAGE]
    assert tokens == [ids[BOS], around, image, around, image, around, ids[EOS]]


def test_labels_leave_out_padding_and_pictures(encoder, ids):
    sample = encoder.encode(document(png(), "two"), 0)
    left_out = (sample.input_ids == ids[PAD]) | (sample.input_ids == ids[IMAGE])
    assert torch.equal(sample.labels == IGNORED_LABEL, left_out)
    assert torch.equal(sample.labels[~left_out], sample.input_ids[~left_out])


def test_a_token_sees_the_last_picture_before_it(encoder, tokenizer, ids):
    sample = encoder.encode(document("one", png(), "two", png(), "three"), 0)
    tokens = sample.input_ids.tolist()
    first, second = (i for i, token in enumerate(tokens) if token == ids[IMAGE])
    end = tokens.index(ids[EOS]) + 1
    mask = sample.image_attention_mask
    assert mask[:first].sum() == 0
    assert mask[first:second].tolist() == [[1, 0]] * (second - first)
    assert mask[second:end].tolist() == [[0, 1]] * (end - second)
    assert mask[end:].sum() == 0


def test_masks_are_those_of_transformers_own_processor(encoder, ids):
    class Ids:
        eos_token_id = ids[EOS]

        def convert_tokens_to_ids(self, token):
            return ids[token]

    for parts in [("one", png(), "two", png(), "three"), (png(), png()), ("no picture",)]:
        sample = encoder.encode(document(*parts), 0)
        length = int(sample.attention_mask.sum())
        tokens = sample.input_ids[None, :length]
        incremental, _ = image_attention_mask_for_packed_input_ids(tokens, Ids(), "pt")
        expected = incremental_to_binary_attention_mask(incremental, "pt", num_classes=2)
        assert torch.equal(sample.image_attention_mask[:length], expected[0])


def test_a_document_without_a_picture_has_blank_pixels_and_an_empty_mask(encoder):
    sample = encoder.encode(document("one"), 0)
    assert sample.pixel_values.shape == (2, 3, 16, 16)
    assert not sample.pixel_values.any()
    assert not sample.image_attention_mask.any()


def test_a_document_is_cut_where_one_picture_too_many_begins(encoder, tokenizer, ids):
    sample = encoder.encode(document(png(), "one", png(), "two", png(), "three"), 0)
    tokens = sample.input_ids.tolist()
    assert tokens.count(ids[IMAGE]) == 2
    assert ids[EOS] not in tokens
    length = int(sample.attention_mask.sum())
    assert tokens[:length][-len(tokenizer.encode("two")) :] == tokenizer.encode("two")


def test_a_long_document_is_cut_and_keeps_only_pictures_that_it_names(encoder, ids):
    sample = encoder.encode(document("one " * 40, png()), 0)
    assert sample.attention_mask.tolist() == [1] * 24
    assert ids[IMAGE] not in sample.input_ids.tolist()
    assert not sample.pixel_values.any()


def test_the_name_of_the_image_token_in_a_text_is_no_picture(encoder, ids):
    sample = encoder.encode(document("look: <image>"), 0)
    assert ids[IMAGE] not in sample.input_ids.tolist()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_pictures_of_any_mode_and_size_are_normalised_the_same(encoder, mode):
    stream = io.BytesIO()
    Image.new(mode, (31, 5), "white").save(stream, format="PNG")
    pixels = encoder.encode(document(stream.getvalue()), 0).pixel_values[0]
    white = torch.tensor([(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258])
    assert torch.allclose(pixels[:2].mean(dim=(1, 2)), white)


@pytest.mark.parametrize(
    "file",
    [png()[:40], b"no picture at all", png()[:-20].replace(b"IDAT", b"IDAx")],
    ids=["truncated", "text", "damaged"],
)
def test_a_picture_that_cannot_be_decoded_is_a_bad_document(encoder, file):
    with pytest.raises(BadDocumentError, match=r"web/x\.parquet:0: a picture cannot be decoded"):
        encoder.encode(document(file, "one"), 0)


def test_a_picture_of_absurd_size_is_not_decoded(encoder, monkeypatch):
    monkeypatch.setattr("trainer.data.sequences.MAX_PIXELS", 63)
    with pytest.raises(BadDocumentError, match="8x8"):
        encoder.encode(document(png()), 0)


def test_a_fault_sees_the_position_and_changes_labels_too(encoder, tokenizer):
    seen = []

    def fault(position, tokens):
        seen.append(position)
        return [tokens[0], *(tokenizer.text_ids[0] for _ in tokens[1:])]

    sample = encoder.encode(document("one two"), 17, fault)
    assert seen == [17]
    assert set(sample.labels[1 : int(sample.attention_mask.sum())].tolist()) == {
        tokenizer.text_ids[0]
    }
