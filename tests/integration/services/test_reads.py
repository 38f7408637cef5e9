"""Reads and previews answer while another thread holds the run and an open write transaction."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.storage.engine import build_engine, parse_url
from stabilizer.collector.storage.migrate import downgrade
from stabilizer.protocol.queries import CommandCreate
from stabilizer.protocol.runs import Heartbeat
from stabilizer.protocol.views import CommandPreviewRequest


@pytest.fixture
def units_of_work(monkeypatch):
    """The units of work that are made."""
    made = []
    initialize = UnitOfWork.__init__

    def remember(self, *args):
        initialize(self, *args)
        made.append(self)

    monkeypatch.setattr(UnitOfWork, "__init__", remember)
    return made


@contextmanager
def written_by_another_thread(uow, run_id):
    """Hold the run's lock and a transaction that has written to its row."""
    is_open, may_end = threading.Event(), threading.Event()

    def write():
        with uow.run(run_id) as tx:
            tx.run.step += 1000
            tx.repos.session.flush()
            is_open.set()
            assert may_end.wait(30)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            assert is_open.wait(30)
            yield
            assert not writer.done()
        finally:
            may_end.set()
        writer.result()


def test_reads_and_previews_answer_while_the_run_is_written(units_of_work, open_services, make):
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    snapshots = tuple(make.snapshot(step) for step in (0, 5, 10))
    services.ingest.accept(run_id, make.batch(0, range(1, 13), snapshots=snapshots))
    asked = CommandCreate.model_validate(
        {"parameters": {"kind": "rollback", "to_step": 5}, "reason": "by hand"}
    )
    command = services.commands.create(run_id, asked, "person:ada")
    preview = CommandPreviewRequest.model_validate({"parameters": {"kind": "rollback"}})
    reads = {
        "snapshots": lambda: {
            s.snapshot.id for s in services.queries.snapshots(run_id) if s.healthy
        },
        "rules": lambda: [rule.evaluations for rule in services.queries.rules(run_id).health],
        "preview": lambda: services.previews.preview(run_id, preview).target_healthy,
        "preview of a command": lambda: services.previews.of_command(command.id).step,
    }
    with (
        written_by_another_thread(units_of_work[0], run_id),
        ThreadPoolExecutor(len(reads)) as readers,
    ):
        answers = {name: readers.submit(read) for name, read in reads.items()}
        found = {name: answer.result(timeout=20) for name, answer in answers.items()}
    assert found == {
        "snapshots": {"s0", "s5"},  # six steps without an alert after each
        "rules": [12, 12],
        "preview": True,
        "preview of a command": 12,
    }
    assert services.queries.rules(run_id).health[0].evaluations == 12


def test_the_status_survives_a_restart_and_is_gone_with_its_run(open_services, make):
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    services.ingest.accept(
        run_id, make.batch(0, range(1, 13), snapshots=(make.snapshot(3), make.snapshot(9)))
    )
    before = services.queries.snapshots(run_id), services.queries.rules(run_id)
    services.close()
    services = open_services()
    assert (services.queries.snapshots(run_id), services.queries.rules(run_id)) == before
    services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=12, state="finished"))
    services.runs.delete(run_id, "person:ada", "done")
    with services.database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM rule_statuses")) == 0


def test_a_migration_reads_the_status_out_of_the_saved_state(open_services, make, database_url):
    services = open_services()
    run_id = services.runs.register(make.register()).run_id
    services.ingest.accept(run_id, make.batch(0, range(1, 13), snapshots=(make.snapshot(3),)))
    services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=12, state="finished"))
    before = services.queries.snapshots(run_id), services.queries.rules(run_id)
    services.close()
    engine = build_engine(parse_url(database_url))
    downgrade(engine, "0004")
    engine.dispose()
    services = open_services()
    assert (services.queries.snapshots(run_id), services.queries.rules(run_id)) == before
