from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from stabilizer.agent.control.agreement import AllRanks, RankStatus, SingleProcess
from stabilizer.protocol.commands import RejectReason


@pytest.fixture
def alone():
    """A gloo world of one rank; two ranks are in tests/distributed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield AllRanks()
    dist.destroy_process_group()


def test_one_process_agrees_at_once(make):
    agreement = SingleProcess()
    command = make.command()
    assert agreement.exchange([command], RankStatus(spoiled=True, healthy=3)) == (command,)
    assert agreement.merged == RankStatus(spoiled=False, healthy=3)
    agreement.exchange([], RankStatus(ending=True))
    assert agreement.merged.ending
    assert agreement.share_id("a" * 32) == "a" * 32
    assert agreement.vote(None) is None
    assert agreement.vote(RejectReason.RUN_ENDING) is RejectReason.RUN_ENDING
    assert agreement.close() == ()
    assert not agreement.is_busy
    assert agreement.is_leader


def test_ranks_agree_one_boundary_later(alone, make):
    first, second = make.command(), make.command()
    assert alone.exchange([first, second], RankStatus()) == ()
    assert alone.is_busy
    assert alone.exchange([], RankStatus(spoiled=True, healthy=4)) == (first, second)
    assert not alone.is_busy
    assert alone.merged == RankStatus()
    assert alone.exchange([], RankStatus()) == ()
    assert alone.merged == RankStatus(spoiled=True, healthy=4)
    alone.exchange([], RankStatus(ending=True))
    alone.exchange([], RankStatus())
    assert alone.merged == RankStatus(ending=True)


def test_commands_in_flight_at_the_end_are_returned(alone, make):
    command = make.command()
    alone.exchange([command], RankStatus())
    assert alone.close() == (command,)
    assert alone.close() == ()


def test_the_leaders_id_is_shared(alone):
    assert alone.share_id("0123456789abcdef" * 2) == "0123456789abcdef" * 2


def test_votes(alone):
    assert alone.vote(None) is None
    assert alone.vote(RejectReason.UNKNOWN_SNAPSHOT) is RejectReason.UNKNOWN_SNAPSHOT


def test_never_less_patient_than_the_job(alone, monkeypatch):
    asked = {}
    monkeypatch.setattr(dist, "new_group", lambda **options: asked.update(options))
    AllRanks()
    assert asked["timeout"] >= timedelta(hours=12)
