import pytest
from sqlalchemy import text

from stabilizer.errors import StorageError
from stabilizer.protocol.runs import Heartbeat

FORBIDDEN = {
    "update": "UPDATE audit SET actor = 'somebody else' WHERE id = 1",
    "delete": "DELETE FROM audit WHERE id = 1",
    "delete all": "DELETE FROM audit",
}
FORBIDDEN_BY_BACKEND = {
    "sqlite": [
        (
            "INSERT OR REPLACE INTO audit (id, at, actor, action, subject, reason, message) "
            "VALUES (1, '2026-01-01', 'x', 'armed', 'x', 'registered', 'x')"
        )
    ],
    "postgresql": [
        "TRUNCATE audit",
        "TRUNCATE audit CASCADE",
        (
            "INSERT INTO audit (id, at, actor, action, subject, reason, message) "
            "VALUES (1, now(), 'x', 'armed', 'x', 'registered', 'x') "
            "ON CONFLICT (id) DO UPDATE SET actor = 'x'"
        ),
    ],
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_database_refuses_to_change_the_past(services, run_id, statement):
    before = services.queries.audit(run_id)
    with (
        pytest.raises(StorageError, match="append-only"),
        services.database.transaction() as session,
    ):
        session.execute(text(statement))
    assert services.queries.audit(run_id) == before


def test_there_is_no_way_around(services, run_id, backend):
    before = services.queries.audit(run_id)
    for statement in FORBIDDEN_BY_BACKEND[backend]:
        with (
            pytest.raises(StorageError, match="append-only"),
            services.database.transaction() as session,
        ):
            session.execute(text(statement))
    assert services.queries.audit(run_id) == before


def test_a_deleted_run_leaves_its_log(services, run_id):
    services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=0, state="finished"))
    before = services.queries.audit(run_id).entries
    services.runs.delete(run_id, "person:ada", "a test run")
    after = services.queries.audit(run_id).entries
    assert after[: len(before)] == before
    assert [entry.action for entry in after[len(before) :]] == ["run_deleted"]


def test_pages_show_everything_once_and_in_order(services, run_id, make):
    for number in range(5):
        services.runs.register(make.register(name=f"other {number}"))
    whole = services.queries.audit(limit=200).entries
    pages, after = [], 0
    while after is not None:
        page = services.queries.audit(after=after, limit=3)
        pages += page.entries
        after = page.next_after
    assert tuple(pages) == whole
    assert [entry.id for entry in whole] == sorted({entry.id for entry in whole})
    assert {entry.run_id for entry in services.queries.audit(run_id).entries} == {run_id}
