from __future__ import annotations

import os

import pytest

from stabilizer.agent.control.snapshots import SnapshotRing, default_max_bytes, memory_limit_bytes

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
