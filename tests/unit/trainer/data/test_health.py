from trainer.data import StreamLoader
from trainer.data.documents import Reason, Skip
from trainer.data.loader import DataHealth


def values(metrics):
    return {(m.name, *sorted(m.labels.values())): m.value for m in metrics}


def test_what_is_read_and_passed_over_is_counted_by_source_and_reason(make_stream):
    limited = make_stream(**{"data.sources": {"web_documents": 1}, "data.filters.min_pictures": 3})
    loader = StreamLoader(limited, batch_size=4, epoch_samples=16)
    batches = list(loader)
    found = values(loader.health)
    read = {name: sum(b["source"].count(name) for b in batches) for name in ("web_documents",)}
    assert found["documents_read", "web_documents"] == read["web_documents"]
    skipped = sum(batch["passed_over"] for batch in batches)
    assert skipped > 0
    counted = sum(v for key, v in found.items() if key[0] == "documents_skipped")
    assert counted == skipped == loader.passed_over
    assert ("documents_skipped", "too_few_pictures", "web_documents") in found
    assert found["documents_skipped_ratio",] == skipped / (skipped + 16)


def test_shards_that_cannot_be_used_are_there_from_the_start():
    health = DataHealth([Skip("shards", "web", Reason.UNREADABLE, "web/1.tar")] * 2)
    assert values(health.metrics())["shards_skipped", "unreadable", "web"] == 2


def test_before_anything_was_read_there_is_no_ratio_to_speak_of():
    assert values(DataHealth().metrics()) == {
        ("documents_skipped_ratio",): 0.0,
        ("sequence_fill",): 0.0,
    }


def test_the_fill_is_that_of_the_newest_batch(make_stream):
    loader = StreamLoader(make_stream(), batch_size=4, epoch_samples=8)
    for batch in loader:
        expected = float(batch["attention_mask"].float().mean())
        assert abs(values(loader.health)["sequence_fill",] - expected) < 1e-6
