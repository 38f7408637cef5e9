import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import config_to_yaml
from trainer.data.records import LedgerEntry, SampleLedger
from trainer.inspection import RunFolder, parse_window

PACKED = {
    "data.packing": {"documents": 8, "rows": 3},
    "data.sequence_length": 112,
    "data.max_images": 8,
}


@pytest.fixture
def make_run(make_config, make_stream, tmp_path):
    """Return a function that writes the folder of a run of four samples a step."""

    def make(reads=(), **fields):
        out = tmp_path / "run"
        out.mkdir(exist_ok=True)
        (out / "config.yaml").write_text(config_to_yaml(make_config(**fields)))
        stream = make_stream(**fields)
        ledger = SampleLedger.begin(out / "ledger", 10**6, rank=0, resumes=False)
        for attempt, step, first, skipped in reads:
            while ledger.attempt < attempt:
                ledger.begin_attempt()
            samples = [stream.read(first + i).sample for i in range(4)]
            names = [name for sample in samples for name in sample.sample_ids]
            ledger.write(
                LedgerEntry(
                    attempt=attempt,
                    step=step,
                    rank=0,
                    positions=[sample.position for sample in samples],
                    sample_ids=names,
                    sources=[source for sample in samples for source in sample.sources],
                    rows=[row for row, s in enumerate(samples) for _ in s.sample_ids],
                    losses=[attempt * 100.0 + step] * len(names),
                    skipped_windows=skipped,
                )
            )
        ledger.close()
        return RunFolder.open(out)

    return make


def summary(occurrences):
    return [(o.position, o.step, o.attempt, o.loss) for o in occurrences]


def test_steps_are_taken_from_the_ledger(make_run, make_stream):
    run = make_run([(1, 1, 0, ()), (1, 2, 4, ()), (1, 3, 8, ())])
    found = run.occurrences(parse_window("2:3", "step"))
    assert summary(found) == [(p, 2, 1, 102.0) for p in (4, 5, 6, 7)]
    stream = make_stream()
    assert [o.sample_id for o in found] == [
        stream.read(p).sample.sample_ids[0] for p in range(4, 8)
    ]


def test_the_newest_attempt_counts_unless_another_is_asked_for(make_run):
    run = make_run([(1, 1, 0, ()), (1, 2, 4, ()), (2, 2, 12, ((4, 12),))])
    window = parse_window("1:3", "step")
    assert summary(run.occurrences(window)) == [
        *((p, 1, 1, 101.0) for p in range(4)),
        *((p, 2, 2, 202.0) for p in range(12, 16)),
    ]
    assert {o.position for o in run.occurrences(window, attempt=1)} == set(range(8))
    with pytest.raises(ConfigurationError, match="--attempt: 3"):
        run.occurrences(window, attempt=3)


def test_skipped_windows_are_listed_and_their_documents_read_from_the_stream(make_run, make_stream):
    run = make_run([(1, 1, 0, ()), (2, 2, 12, ((4, 12),))])
    (skipped,) = run.skipped_windows()
    assert (skipped.attempt, skipped.step, skipped.start, skipped.end) == (2, 2, 4, 12)
    found = run.occurrences(parse_window("2:14", "sample"))
    assert [(o.position, o.step) for o in found] == [
        *((p, 1) for p in (2, 3)),
        *((p, None) for p in range(4, 12)),
        *((p, 2) for p in (12, 13)),
    ]
    stream = make_stream()
    assert found[2].sample_id == stream.read(4).sample.sample_ids[0]


def test_without_a_ledger_steps_are_counted_from_the_start(make_run, make_stream):
    found = make_run().occurrences(parse_window("2:3", "step"))
    assert summary(found) == [(p, None, None, None) for p in (4, 5, 6, 7)]


def test_packed_documents_are_found_by_their_sequence(make_run, make_stream):
    run = make_run([(1, 1, 0, ())], **PACKED)
    stream = make_stream(**PACKED)
    for window in ("0:2", "5:6"):  # in the ledger, and not
        parsed = parse_window(window, "sample")
        expected = [name for p in parsed.samples(4) for name in stream.read(p).sample.sample_ids]
        assert [o.sample_id for o in run.occurrences(parsed)] == expected


def test_a_folder_that_is_none_of_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--run: .*config\.yaml"):
        RunFolder.open(tmp_path)


def test_what_has_moved_can_be_said(make_run, tmp_path):
    run = make_run()
    with pytest.raises(ConfigurationError, match=r"data\.folder"):
        RunFolder.open(tmp_path / "run", ["data.folder=/none"]).reader()
    assert run.reader().documents == 45


def test_positions_that_repeat_on_demand_are_those_that_the_run_would_have_read(make_run):
    fields = {"faults.repeated_documents": {"first_sample": 8, "samples": 4, "distinct": 1}}
    found = make_run(**fields).occurrences(parse_window("7:13", "sample"))
    names = [each.sample_id for each in found]
    assert [each.position for each in found] == list(range(7, 13))
    assert len(set(names[1:5])) == 1
    assert len(set(names)) == 3


def test_what_a_run_read_otherwise_than_the_corpus_holds_it_is_reported(make_run):
    assert make_run().remark() == ""
    bad = {"first_sample": 16, "samples": 8}
    shard = {"shard": "web_documents/part-00000.parquet"}
    told = make_run(**{"faults.bad_documents": bad, "faults.corrupted_shard": shard}).remark()
    assert "samples 16 to 23" in told
    assert "damaged copy of web_documents/part-00000.parquet" in told


def test_steps_that_the_ledger_has_lost_are_named(make_run, tmp_path):
    run = make_run([(1, 4, 12, ()), (1, 5, 16, ()), (1, 7, 24, ()), (2, 8, 32, ())])
    said = run.gaps(parse_window("2:10", "step"))
    assert said == "Not in the ledger: steps 2 to 3, 6, 9; their documents are not here."
    assert {o.step for o in run.occurrences(parse_window("2:10", "step"))} == {4, 5, 7, 8}
    assert run.gaps(parse_window("4:6", "step")) == ""
    assert run.gaps(parse_window("7:9", "step")) == ""
    assert "step 8;" in run.gaps(parse_window("7:9", "step"), attempt=1)
    assert run.gaps(parse_window("0:99", "sample")) == ""  # what is lost is read from the stream
    assert "does not know steps 1 to 3" in run.gaps(parse_window("1:4", "step"))
    assert RunFolder(run.config, None).gaps(parse_window("1:4", "step")) == ""


def test_steps_of_which_a_ranks_part_is_lost_are_named(make_run, tmp_path):
    run = make_run([(1, step, 4 * step, ()) for step in (1, 2, 3)])
    other = SampleLedger.begin(tmp_path / "run" / "ledger", 10**6, rank=1, resumes=False)
    for step in (2, 3):
        line = {"positions": (step,), "sample_ids": ("web/a:0",), "sources": ("web",), "rows": (0,)}
        other.write(LedgerEntry(attempt=1, step=step, rank=1, **line))
    other.close()
    said = run.gaps(parse_window("1:4", "step"))
    assert said == "Of step 1 the ledger has lost what some ranks read."
    assert run.gaps(parse_window("2:4", "step")) == ""
