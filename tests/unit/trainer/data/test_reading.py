import dataclasses
import json
from collections import Counter

import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import FiltersConfig
from trainer.data.documents import BadDocumentError, Document, Reason
from trainer.data.order import MixtureOrder
from trainer.data.reading import DocumentReader, StreamFaults
from trainer.data.selection import DocumentFilter, Quarantine


class Pages:
    """Documents in memory; some are damaged."""

    skipped = ()

    def __init__(self, texts, damaged=()):
        self._texts = texts
        self._damaged = damaged
        self.blocks = [len(texts)]

    def __len__(self):
        return len(self._texts)

    def number(self, sample_id):
        return int(sample_id.removeprefix("web/p:"))

    def document(self, index):
        if index in self._damaged:
            raise BadDocumentError(f"web/p:{index}", "is damaged", Reason.UNREADABLE)
        return Document(f"web/p:{index}", "web", (self._texts[index],))


def make_reader(texts, damaged=(), blocks=None, shuffle_blocks=0, **options):
    pages = Pages(texts, damaged)
    order = MixtureOrder(
        {"web": blocks or pages.blocks}, {"web": 1}, 0, shuffle_blocks=shuffle_blocks
    )
    return DocumentReader({"web": pages}, order, **options)


def names(reader, count=20):
    return [reader.find(position, lambda d: d.sample_id).made for position in range(count)]


TEXTS = [f"text number {i}" for i in range(20)]


def test_a_document_in_quarantine_is_replaced_wherever_it_would_come():
    usual = names(make_reader(TEXTS), 60)
    reader = make_reader(TEXTS, quarantine=Quarantine(frozenset({"web/p:3", "web/p:4"})))
    found = [reader.find(position, lambda d: d.sample_id) for position in range(60)]
    for before, now in zip(usual, found, strict=True):
        if before in {"web/p:3", "web/p:4"}:
            assert now.made not in {"web/p:3", "web/p:4"}
            assert {skip.reason for skip in now.skips} == {Reason.QUARANTINED}
            assert now.skips[0].sample_id == before
        else:
            assert (now.made, now.skips) == (before, ())


def test_a_position_in_quarantine_gets_another_document_and_its_neighbours_their_own():
    usual = names(make_reader(TEXTS))
    found = names(make_reader(TEXTS, quarantine=Quarantine(positions=((5, 8),))))
    assert [p for p in range(20) if usual[p] != found[p]] == [5, 6, 7]


def test_a_document_outside_of_the_limits_is_replaced_and_counted():
    texts = [("few" if i % 2 else "as many words as it takes") for i in range(20)]
    limits = {"web": DocumentFilter(FiltersConfig(min_words=3))}
    reader = make_reader(texts, filters=limits)
    found = [reader.find(position, lambda d: d.text) for position in range(20)]
    assert {each.made for each in found} == {"as many words as it takes"}
    reasons = Counter(skip.reason for each in found for skip in each.skips)
    assert set(reasons) == {Reason.TOO_FEW_WORDS}
    assert sum(bool(each.skips) for each in found) == 10


def test_pictures_that_were_taken_out_are_reported_with_their_document():
    limits = {"web": DocumentFilter(FiltersConfig(min_picture_side=5))}
    reader = make_reader(TEXTS, filters=limits)

    def with_small_picture(position, document):
        small = b"P6 1 1 255 \x00\x00\x00"
        return dataclasses.replace(document, parts=(small, *document.parts))

    faulty = make_reader(TEXTS, filters=limits, faults=StreamFaults(document=with_small_picture))
    assert reader.find(0, lambda d: d.parts).skips == ()
    found = faulty.find(0, lambda d: d.parts)
    assert found.made == reader.find(0, lambda d: d.parts).made
    assert [(skip.what, skip.reason) for skip in found.skips] == [("pictures", Reason.PICTURE_SIZE)]


def test_limits_that_leave_nothing_over_are_named():
    limits = {"web": DocumentFilter(FiltersConfig(min_words=100))}
    with pytest.raises(ConfigurationError, match=r"^data\.filters: .*too_few_words"):
        make_reader(TEXTS, filters=limits).find(0, lambda d: d)


def test_unwanted_documents_do_not_count_as_damage():
    limits = {"web": DocumentFilter(FiltersConfig(min_words=2))}
    texts = ["few"] * 19 + ["enough words"]
    reader = make_reader(texts, filters=limits, max_bad_in_a_row=1)
    assert reader.find(0, lambda d: d.text).made == "enough words"


def test_damage_all_around_stops_the_job_and_shows_its_kinds():
    reader = make_reader(TEXTS, damaged=range(20), max_bad_in_a_row=3)
    expected = r"^data\.max_bad_in_a_row: 4 unusable.*sample 7 \(4 unreadable\).*is damaged"
    with pytest.raises(ConfigurationError, match=expected):
        reader.find(7, lambda d: d)


def test_a_shard_full_of_damage_does_not_stop_the_job():
    """Substitutes come from anywhere in the source, not from the damaged neighbourhood."""
    texts = [str(i) for i in range(400)]
    reader = make_reader(texts, damaged=range(100, 220), max_bad_in_a_row=16)
    found = names(reader, 400)
    assert not {f"web/p:{i}" for i in range(100, 220)} & set(found)


def test_a_damaged_block_that_is_shuffled_with_no_other_does_not_stop_the_job():
    texts = [str(i) for i in range(50)]
    blocks = {"blocks": [10] * 5, "shuffle_blocks": 2}  # two, two, and one alone
    usual = names(make_reader(texts, **blocks), 50)
    alone = {int(name.removeprefix("web/p:")) for name in usual[40:]}
    assert len({number // 10 for number in alone}) == 1
    found = names(make_reader(texts, damaged=alone, **blocks), 50)
    assert found[:40] == usual[:40]
    assert not set(found[40:]) & set(usual[40:])


def test_a_document_is_read_by_its_id_whatever_keeps_it_out_of_the_stream():
    limits = {"web": DocumentFilter(FiltersConfig(min_words=100))}
    reader = make_reader(
        TEXTS, filters=limits, quarantine=Quarantine(frozenset({"web/p:3"})), damaged=[5]
    )
    document = reader.document("web/p:3")
    assert document.text == TEXTS[3]
    assert reader.judge(document).rejected == (Reason.TOO_FEW_WORDS,)
    with pytest.raises(BadDocumentError):
        reader.document("web/p:5")
    with pytest.raises(KeyError):
        reader.document("other/p:3")


def test_a_fault_repeats_documents_of_other_positions():
    def again(position):
        return 3 if 10 <= position < 14 else position

    usual = names(make_reader(TEXTS))
    reader = make_reader(TEXTS, faults=StreamFaults(position=again))
    assert names(reader) == [*usual[:10], *usual[3:4] * 4, *usual[14:]]
    assert reader.place(12) == reader.place(3)


def test_a_fault_damages_documents_at_positions():
    def corrupt(position, document):
        if position in {4, 5}:
            raise BadDocumentError(document.sample_id, "is corrupted", Reason.UNREADABLE)
        return document

    usual = names(make_reader(TEXTS))
    with pytest.raises(ConfigurationError, match="sample 4"):
        make_reader(TEXTS, faults=StreamFaults(document=corrupt)).find(4, lambda d: d)
    assert names(make_reader(TEXTS, faults=StreamFaults(document=corrupt)), 4) == usual[:4]


def test_filters_and_quarantine_come_from_the_configuration(make_stream, tmp_path):
    stream = make_stream()
    first = stream.read(0).sample.sample_ids[0]
    file = tmp_path / "quarantine.jsonl"
    file.write_text(json.dumps({"sample_id": first}))
    other = make_stream(**{"data.quarantine": str(file)})
    assert other.read(0).sample.sample_ids[0] != first
    limited = make_stream(**{"data.sources": {"web_documents": 1}, "data.filters.min_pictures": 3})
    found = [limited.read(position) for position in range(8)]
    assert sum(read.passed_over for read in found) > 0


def test_a_source_may_have_limits_of_its_own(make_stream):
    sources = {
        "web_documents": {"weight": 1, "filters": {"min_pictures": 3}},
        "image_text_pairs": 1,
    }
    stream = make_stream(**{"data.sources": sources})
    skipped = [skip.source for p in range(24) for skip in stream.read(p).skips]
    assert set(skipped) == {"web_documents"}
