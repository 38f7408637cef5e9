import json
import math

import pytest

from trainer.data.records import LedgerEntry, SampleLedger, read_ledger, segments


def entry(step, attempt=1, rank=0, **more):
    given = {
        "positions": (step * 2, step * 2 + 1),
        "sample_ids": (f"web/a:{step}", f"web/a:{step + 1}"),
        "sources": ("web", "web"),
        "rows": (0, 1),
        "losses": (1.5, 2.5),
    }
    return LedgerEntry(attempt=attempt, step=step, rank=rank, **(given | more))


@pytest.fixture
def begin(tmp_path):
    ledgers = []

    def make(max_bytes=10**6, rank=0, resumes=False):
        ledgers.append(
            SampleLedger.begin(tmp_path / "ledger", max_bytes, rank=rank, resumes=resumes)
        )
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        ledger.close()


def steps(folder):
    return [(each.attempt, each.step, each.rank) for each in read_ledger(folder)]


def test_what_is_written_is_read_back(begin, tmp_path):
    ledger = begin()
    written = entry(
        1, skipped=(("documents", "web", "unreadable", "web/b:3"),), skipped_windows=((8, 16),)
    )
    ledger.write(written)
    (read,) = read_ledger(ledger.folder)
    assert json.dumps(vars_of(read)) == json.dumps(vars_of(written))


def vars_of(each):
    return {name: getattr(each, name) for name in LedgerEntry.__slots__}


def test_losses_that_are_not_finite_are_distinguished(begin):
    ledger = begin()
    ledger.write(entry(1, losses=(math.nan, math.inf)))
    ledger.write(entry(2, losses=(-math.inf, None)))
    first, second = read_ledger(ledger.folder)
    assert math.isnan(first.losses[0])
    assert first.losses[1] == math.inf
    assert list(second.losses) == [-math.inf, None]


def test_attempts_stand_one_behind_the_other(begin):
    ledger = begin()
    for step in (1, 2, 3):
        ledger.write(entry(step))
    ledger.begin_attempt()
    for step in (2, 3):
        ledger.write(entry(step, attempt=ledger.attempt))
    assert steps(ledger.folder) == [(1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 2, 0), (2, 3, 0)]


def test_a_run_that_continues_keeps_what_is_there_and_a_new_one_does_not(begin):
    for attempt in (1, 2, 3):
        ledger = begin(resumes=True)
        assert ledger.attempt == attempt
        ledger.write(entry(attempt, attempt=attempt))
        ledger.close()
    assert [each[0] for each in steps(ledger.folder)] == [1, 2, 3]
    fresh = begin()
    fresh.write(entry(1))
    assert steps(ledger.folder) == [(1, 1, 0)]


def test_ranks_leave_each_others_files_alone(begin):
    ledgers = [begin(rank=rank) for rank in (0, 1)]
    for ledger in ledgers:
        ledger.write(entry(1, rank=ledger.rank))
    begin(rank=1)
    assert steps(ledgers[0].folder) == [(1, 1, 0)]


def test_a_rank_that_is_new_begins_the_attempt_of_the_others(begin):
    first = begin()
    first.write(entry(1))
    first.begin_attempt()
    first.write(entry(1, attempt=first.attempt))
    resumed = [begin(rank=rank, resumes=True) for rank in (0, 1)]
    for ledger in resumed:
        ledger.write(entry(2, attempt=ledger.attempt, rank=ledger.rank))
    assert steps(first.folder)[-2:] == [(3, 2, 0), (3, 2, 1)]


def test_a_fresh_run_leaves_nothing_of_ranks_that_are_no_more(begin):
    for rank in (0, 1, 2):
        begin(rank=rank).write(entry(1, rank=rank))
    begin().write(entry(1))
    assert steps(begin(rank=5, resumes=True).folder) == [(1, 1, 0)]


@pytest.mark.parametrize("max_bytes", [4_000, 20_000])
def test_it_stays_within_its_bytes_and_keeps_the_newest(begin, max_bytes):
    ledger = begin(max_bytes)
    for step in range(1, 400):
        ledger.write(entry(step))
        size = sum(segment.path.stat().st_size for segment in segments(ledger.folder))
        assert size <= max_bytes + 400  # a line may begin a file of its own
    kept = [step for _, step, _ in steps(ledger.folder)]
    assert kept == list(range(kept[0], 400))
    assert len(kept) > 10


def test_a_line_that_was_cut_off_is_left_out(begin):
    ledger = begin()
    for step in (1, 2):
        ledger.write(entry(step))
    ledger.close()
    (segment,) = segments(ledger.folder)
    segment.path.write_text(segment.path.read_text()[:-7])
    assert [step for _, step, _ in steps(ledger.folder)] == [1]


def test_a_full_disk_costs_the_ledger_and_is_reported_once(begin, caplog):
    ledger = begin()
    ledger.write(entry(1))
    (ledger.folder / "attempt-0001-step-00000002-rank-0.jsonl").mkdir()
    ledger.begin_attempt()
    ledger.attempt = 1
    for step in (2, 3, 4):
        ledger.write(entry(step))
    assert ledger.has_failed
    assert len([r for r in caplog.records if "cannot be written any more" in r.message]) == 1


def test_where_no_ledger_is_there_is_nothing(tmp_path):
    assert list(read_ledger(tmp_path / "none")) == []
