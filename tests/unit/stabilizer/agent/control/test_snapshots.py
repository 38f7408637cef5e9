from __future__ import annotations

import os

import pytest

from stabilizer.agent.control.snapshots import SnapshotRing, default_max_bytes, memory_limit_bytes
from stabilizer.errors import CommandRejectedError, ConfigurationError
from stabilizer.protocol.commands import SnapshotTarget


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def ring(dropped):
    return SnapshotRing(3, 1000, dropped.append)


def ids(ring):
    return [info.id for info in ring.inventory()]


def test_the_oldest_go_when_the_number_is_reached(ring, make, dropped):
    for number in range(5):
        ring.add(make.snapshot(number, number + 1))
    assert ids(ring) == ["step2-3", "step3-4", "step4-5"]
    assert dropped == [{"step": 0}, {"step": 1}]


def test_the_oldest_go_when_the_bytes_are_used_up(ring, make):
    for number in range(3):
        ring.add(make.snapshot(number, number + 1, num_bytes=400))
    assert ids(ring) == ["step1-2", "step2-3"]
    assert ring.num_bytes == 800


def test_one_always_stays_even_if_it_is_too_large(ring, make, caplog):
    ring.add(make.snapshot(1, 1))
    ring.add(make.snapshot(2, 2, num_bytes=5000))
    assert ids(ring) == ["step2-2"]
    assert "one must be kept" in caplog.text


def test_the_newest_healthy_one_is_never_dropped(ring, make):
    for number in range(3):
        ring.add(make.snapshot(number, number + 1))
    ring.healthy = ("step0-1", "step1-2", "gone-77")
    assert ring.newest_healthy() == 2
    ring.protect(ring.newest_healthy())
    for number in range(3, 8):
        ring.add(make.snapshot(number, number + 1))
    assert ids(ring) == ["step1-2", "step6-7", "step7-8"]


def test_protection_wins_over_bytes(make):
    ring = SnapshotRing(3, 150)
    ring.add(make.snapshot(0, 1))
    ring.protect(1)
    ring.add(make.snapshot(1, 2))
    ring.add(make.snapshot(2, 3))
    assert ids(ring) == ["step0-1", "step2-3"]


def test_nothing_is_healthy_until_reported(ring, make):
    ring.add(make.snapshot(0, 1))
    assert ring.newest_healthy() == 0


def test_room_is_made_before_the_next_one_and_keeps_the_last(ring, make, dropped):
    for number in range(3):
        ring.add(make.snapshot(number, number + 1))
    ring.make_room()
    assert ids(ring) == ["step1-2", "step2-3"]
    single = SnapshotRing(1, 1000)
    single.make_room()
    single.add(make.snapshot(0, 1))
    single.make_room()
    assert ids(single) == ["step0-1"]


def test_of_those_not_finite_only_the_newest_name_stays(ring, make):
    ring.add(make.snapshot(0, 1))
    ring.add(make.snapshot(1, 2, finite=False))
    ring.add(make.snapshot(2, 3, finite=False))
    assert ids(ring) == ["step0-1", "step2-3"]
    assert len(ring) == 2


def test_what_another_rank_finds_spoiled_loses_its_state(ring, make, dropped):
    ring.add(make.snapshot(0, 1))
    ring.add(make.snapshot(1, 2))
    ring.mark_not_finite("step1-2")
    ring.mark_not_finite("step1-2")
    assert dropped == [{"step": 1}]
    assert [(i.id, i.finite, i.num_bytes) for i in ring.inventory()] == [
        ("step0-1", True, 100), ("step1-2", False, 0),
    ]  # fmt: skip


def test_find_wants_the_whole_name(ring, make):
    held = make.snapshot(5, 1, attempt=2)
    ring.add(held)
    ring.add(make.snapshot(6, 2, attempt=2, finite=False))
    ids = {1: "1" * 32, 2: held.info.attempt_id, None: None}

    def find(name, attempt, step):
        # The collector's number is not that of the process; the id is what counts.
        target = SnapshotTarget(snapshot_id=name, attempt=7, attempt_id=ids[attempt], step=step)
        return ring.find(target).info.id

    assert find("step5-1", 2, 5) == "step5-1"
    assert find("step5-1", None, 5) == "step5-1"
    for name, attempt, step, reason in [
        ("step5-1", 1, 5, "unknown_snapshot"),
        ("step5-1", 2, 6, "unknown_snapshot"),
        ("step5-9", 2, 5, "unknown_snapshot"),
        ("step6-2", 2, 6, "snapshot_not_finite"),
    ]:
        with pytest.raises(CommandRejectedError) as caught:
            find(name, attempt, step)
        assert caught.value.reason == reason


def test_find_in_an_empty_ring_names_no_snapshot(ring):
    with pytest.raises(CommandRejectedError, match="held: none"):
        ring.find(SnapshotTarget(snapshot_id="s-1", attempt=1, step=0))


def test_the_abandoned_branch_is_dropped(ring, make):
    for number in range(3):
        ring.add(make.snapshot(number, number + 1))
    ring.drop_after(1)
    assert ids(ring) == ["step0-1", "step1-2"]


def test_clear_gives_everything_back(ring, make, dropped):
    ring.add(make.snapshot(0, 1))
    ring.clear()
    assert len(ring) == 0
    assert dropped == [{"step": 0}]


def test_ids_are_never_repeated(ring):
    assert [ring.next_id(5), ring.next_id(5)] == ["step5-1", "step5-2"]


@pytest.mark.parametrize(("capacity", "max_bytes"), [(0, 10), (1, 0)])
def test_bounds_must_be_positive(capacity, max_bytes):
    with pytest.raises(ConfigurationError, match="1 or more"):
        SnapshotRing(capacity, max_bytes)


def test_the_default_bound_is_a_share_of_the_machine():
    assert SnapshotRing().max_bytes == default_max_bytes() > 2**20


MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 2**30


@pytest.fixture
def limit_with(tmp_path):
    """The limit seen with these cgroups and these files under /sys/fs/cgroup."""

    def limit(groups, files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, content in files.items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return memory_limit_bytes(tmp_path)

    return limit


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"memory.max": b"1073741824\n"}, GIB, id="v2 in a container"),
        pytest.param(
            "0::/jobs/7\n", {"jobs/7/memory.max": b"1073741824\n"}, GIB, id="v2 on the host"
        ),
        pytest.param(
            "0::/jobs/7/rank\n",
            {"jobs/7/rank/memory.max": b"max\n", "jobs/7/memory.max": b"1073741824\n"},
            GIB,
            id="v2 bound by a parent",
        ),
        pytest.param(
            "0::/jobs/7\n",
            {"jobs/7/memory.max": b"2147483648\n", "jobs/memory.max": b"1073741824\n"},
            GIB,
            id="v2 the smallest counts",
        ),
        pytest.param(
            "9:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n",
            {"memory/memory.limit_in_bytes": b"1073741824\n"},
            GIB,
            id="v1 in a container",
        ),
        pytest.param(
            "4:hugetlb,memory:/slurm/job_1\n0::/slurm/job_1\n",
            {
                "memory/memory.limit_in_bytes": b"9223372036854771712\n",
                "memory/slurm/job_1/memory.limit_in_bytes": b"1073741824\n",
            },
            GIB,
            id="v1 of a batch job, v2 beside it",
        ),
        pytest.param("0::/../other\n", {"memory.max": b"1073741824\n"}, GIB, id="outside"),
        pytest.param("0::/\n", {"memory.max": b"max\n"}, MACHINE, id="v2 unlimited"),
        pytest.param(
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": b"9223372036854771712\n"},
            MACHINE,
            id="v1 unlimited",
        ),
        pytest.param("4:cpu:/\n", {"memory/memory.limit_in_bytes": b"1\n"}, MACHINE, id="other"),
        pytest.param("0::/\n", {"memory.max": b"\xff\n"}, MACHINE, id="unreadable"),
        pytest.param("nonsense\n\n", {}, MACHINE, id="nonsense"),
    ],
)
def test_the_smallest_bound_around_the_process_counts(limit_with, groups, files, expected):
    assert limit_with(groups, files) == expected


def test_without_cgroups_the_machine_is_the_limit(tmp_path):
    assert memory_limit_bytes(tmp_path) == MACHINE


def test_a_ring_takes_a_quarter_of_the_limit_of_this_process():
    assert default_max_bytes() == memory_limit_bytes() // 4
    assert SnapshotRing().max_bytes == default_max_bytes()
