import math

import numpy as np
import pytest
from sqlalchemy import event

from stabilizer.collector.storage.models import RunRow
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.queries import CommandCreate, RunQuery
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat, RunUpdate
from stabilizer.protocol.series import Catalog

ADA = "person:ada"


@pytest.fixture
def look(services):
    """Look at the first row, as a page does."""

    def look(**query):
        return services.overview.rows(RunQuery(**query)).rows[0]

    return look


@pytest.fixture
def count_queries(services):
    """Count the statements within a block."""
    statements = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    event.listen(services.database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(services.database.engine, "before_cursor_execute", note)


def marker(step, text, kind="phase_change"):
    return {"kind": kind, "step": step, "text": text}


def test_without_runs_it_is_empty(services):
    found = services.overview.rows(RunQuery())
    assert (found.rows, found.total, found.next_cursor) == ((), 0, None)


def test_a_run_that_has_done_nothing(services, run_id, look):
    row = look()
    assert (row.run.id, row.run.attempts, row.run.open_incident_id) == (run_id, (), None)
    assert (row.phase, row.incident, row.last_intervention) == (None, None, None)
    assert (row.num_proposed, row.sparkline) == (0, None)


def test_pages_are_those_of_the_list_of_runs(services, make):
    for number in range(5):
        services.runs.register(make.register(name=f"run {number}"))
    query = RunQuery(sort="name", descending=False, limit=2)
    first = services.overview.rows(query)
    assert first.next_cursor == services.runs.list(query).next_cursor
    second = services.overview.rows(query.model_copy(update={"cursor": first.next_cursor}))
    assert [row.run.name for row in second.rows] == ["run 2", "run 3"]
    assert second.total == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("IDEF", {"idefics"}),
        ("job-7", {"other"}),
        ("JOB-7", {"other"}),
        ("%", set()),
        ("_", {"with_line"}),
        ("", {"idefics", "other", "with_line"}),
    ],
)
def test_the_search_knows_names_and_keys(services, make, text, found):
    for name, key in (("idefics", "a"), ("other", "job-7"), ("with_line", "b")):
        services.runs.register(make.register(name=name, key=key))
    for page in (services.overview.rows(RunQuery(name=text)),):
        assert {row.run.name for row in page.rows} == found
    assert {run.name for run in services.runs.list(RunQuery(name=text)).runs} == found


def test_the_search_knows_the_beginning_of_an_id_and_not_its_middle(services, make):
    ids = [services.runs.register(make.register(name=f"x{n}")).run_id for n in range(3)]
    upper = RunQuery(name=ids[1][:12].upper())
    assert [row.run.id for row in services.overview.rows(upper).rows] == [ids[1]]
    assert services.overview.rows(RunQuery(name=ids[1][4:16])).rows == ()


class TestDecisions:
    @pytest.fixture
    def diverge(self, services, run_id, make):
        def run(mode):
            services.runs.update(run_id, RunUpdate(mode=mode, reason="test"), ADA)
            services.ingest.accept(run_id, make.batch(0, range(1, 4), 50.0))
            (command,) = services.commands.list(run_id)
            return command

        return run

    def test_an_open_incident_and_a_proposal(self, services, run_id, look, diverge):
        diverge("propose")
        row = look()
        incident = services.queries.incident(row.incident.id)
        assert row.run.open_incident_id == incident.id
        for name in type(row.incident).model_fields:
            assert getattr(row.incident, name) == getattr(incident, name)
        assert (row.num_proposed, row.last_intervention) == (1, None)

    def test_what_was_carried_out_last_is_the_last_intervention(
        self, services, run_id, look, diverge, clock
    ):
        first = diverge("auto")
        by_hand = CommandCreate.model_validate({"parameters": {"kind": "pause"}, "reason": "x"})
        second = services.commands.create(run_id, by_hand, ADA)
        services.commands.poll(run_id, 1)
        for command in (second, first):  # the first one later
            clock.advance(1)
            services.commands.result(run_id, CommandResult(command_id=command.id, state="applied"))
        row = look()
        assert (row.last_intervention.id, row.last_intervention.state) == (first.id, "applied")
        assert row.num_proposed == 0

    def test_a_resolved_incident_is_not_shown(self, services, run_id, look, diverge):
        diverge("propose")
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=3, state="finished"))
        assert look().incident is None


class TestPhase:
    def test_the_newest_of_the_live_lineage_is_shown(self, services, run_id, look, make):
        phases = (marker(1, "warm-up"), marker(20, "long"), marker(5, "rate", kind="lr_change"))
        services.ingest.accept(run_id, make.batch(0, range(1, 31), markers=phases))
        assert look().phase == "long"
        start = make.rollback_start(10)
        services.ingest.accept(run_id, make.batch(0, [11], attempt=2, attempt_start=start))
        assert look().phase == "warm-up"
        services.ingest.accept(
            run_id, make.batch(1, [12], attempt=2, markers=(marker(12, "cool-down"),))
        )
        assert look().phase == "cool-down"


class TestSparkline:
    def expect(self, look, steps, values):
        found = look().sparkline
        assert found.steps == tuple(steps)
        assert np.array_equal(found.values, np.float32(values), equal_nan=True)

    def test_a_short_run_is_shown_whole_and_goes_on(self, services, run_id, look, make):
        services.ingest.accept(run_id, make.batch(0, [1, 2], [3.0, math.nan]))
        self.expect(look, [1, 2], [3.0, math.nan])
        services.ingest.accept(run_id, make.batch(1, [3], [math.inf]))
        self.expect(look, [1, 2, 3], [3.0, math.nan, math.inf])

    def test_a_long_run_keeps_every_extreme_in_64_points(self, services, run_id, look, make):
        losses = np.full(3000, 2.0)
        losses[[777, 1500, 2222]] = 9.0, math.nan, -5.0
        for sequence in range(3):
            part = slice(1000 * sequence, 1000 * (sequence + 1))
            batch = make.batch(sequence, np.arange(1, 3001)[part], losses[part])
            services.ingest.accept(run_id, batch)
            look()
        found = look().sparkline
        assert len(found.steps) <= 64
        assert {778, 1501, 2223, 3000} <= set(found.steps)

    def test_a_rollback_leaves_out_what_was_abandoned(self, services, run_id, look, make):
        services.ingest.accept(run_id, make.batch(0, range(1, 11), 2.0))
        assert look().sparkline.steps[-1] == 10
        start = make.rollback_start(5)
        batch = make.batch(0, [6], [1.0], attempt=2, attempt_start=start)
        services.ingest.accept(run_id, batch)
        self.expect(look, range(1, 7), [2.0] * 5 + [1.0])

    def test_a_rollback_of_a_long_run_is_exact_at_the_cut(self, services, run_id, look, make):
        losses = np.full(5000, 2.0)
        losses[3990] = 7.0  # in one bucket with what is abandoned
        losses[4000:] = 90.0
        services.ingest.accept(run_id, make.batch(0, range(1, 5001), losses))
        assert max(look().sparkline.values) == 90.0
        for attempt, step in ((2, 4000), (3, 3995)):
            start = make.rollback_start(step, parent=attempt - 1)
            batch = make.batch(0, [step + 1], [1.0], attempt=attempt, attempt_start=start)
            services.ingest.accept(run_id, batch)
            found = look().sparkline
            assert (max(found.values), found.steps[-1]) == (7.0, step + 1)
            assert 3991 in found.steps

    def test_late_batches_find_their_place(self, services, run_id, look, make):
        services.ingest.accept(run_id, make.batch(0, [1, 2]))
        services.ingest.accept(run_id, make.batch(2, [5, 6]))
        look()
        start = make.rollback_start(5)
        services.ingest.accept(run_id, make.batch(0, [6], attempt=2, attempt_start=start))
        look()
        services.ingest.accept(run_id, make.batch(1, [3, 4], [7.0, 8.0]))  # of the attempt before
        self.expect(look, range(1, 7), [2.0, 2.0, 7.0, 8.0, 2.0, 2.0])

    def test_a_duplicate_changes_nothing(self, services, run_id, look, make):
        for _ in range(2):
            services.ingest.accept(run_id, make.batch(0, [1, 2]))
            self.expect(look, [1, 2], [2.0, 2.0])

    def test_loss_in_two_catalogs_and_not_at_every_step(self, services, run_id, look, make):
        other = Catalog.of(["accuracy", "loss"])
        services.runs.add_catalogs(run_id, CatalogsAdd(catalogs=(other,)))
        present = np.array([[True, True], [False, True]])
        blocks = [
            make.block([1, 2], present=present),
            make.block([2, 3], catalog=other, values=[[0.5, 4.0], [0.5, 5.0]]),
        ]
        services.ingest.accept(run_id, make.batch(0, blocks=blocks))
        self.expect(look, [1, 2, 3], [2.0, 4.0, 5.0])

    def test_a_run_without_loss_has_none(self, services, make, look):
        register = make.register(catalogs=(Catalog.of(["accuracy"]),), name="odd")
        services.runs.register(register)
        assert look().sparkline is None

    def test_a_new_collector_shows_the_same(self, open_services, make):
        services = open_services()
        run_id = services.runs.register(make.register()).run_id
        services.ingest.accept(run_id, make.batch(0, range(1, 2001), np.sin(np.arange(2000))))
        start = make.rollback_start(900)
        batch = make.batch(0, range(901, 990), attempt=2, attempt_start=start)
        services.ingest.accept(run_id, batch)
        before = services.overview.rows(RunQuery())
        services.close()
        assert open_services().overview.rows(RunQuery()) == before

    def test_a_history_too_long_for_one_look_is_read_by_and_by(
        self, services, run_id, look, make, clock, monkeypatch
    ):
        for sequence in range(300):
            services.ingest.accept(run_id, make.batch(sequence, [sequence + 1]))
        monkeypatch.setattr(clock, "monotonic", iter(range(10**6)).__next__)
        looks = [look().sparkline for _ in range(4)]
        assert looks[:2] == [None, None]
        assert looks[-1].steps[-1] == 300


def test_many_runs_take_as_many_queries_as_few(services, make, count_queries):
    def statements():
        count_queries.clear()
        services.overview.rows(RunQuery(limit=500))
        return len(count_queries)

    ids = [services.runs.register(make.register(name=f"run {n}")).run_id for n in range(30)]
    for run_id in ids:
        services.ingest.accept(run_id, make.batch(0, [1, 2]))
    services.overview.rows(RunQuery(limit=500))
    quiet = statements()
    services.ingest.accept(ids[0], make.batch(1, [3]))
    one_moved = statements()
    for run_id in ids[1:]:
        services.ingest.accept(run_id, make.batch(1, [3]))
    all_moved = statements()
    assert quiet < one_moved == all_moved
    found = services.overview.rows(RunQuery(limit=500))
    assert {row.sparkline.steps for row in found.rows} == {(1, 2, 3)}


def test_a_deleted_run_is_gone_and_its_name_may_come_again(services, run_id, look, make):
    services.ingest.accept(run_id, make.batch(0, [1, 2]))
    look()
    services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=2, state="finished"))
    services.runs.delete(run_id, ADA, "old")
    assert services.overview.rows(RunQuery()).rows == ()
    again = services.runs.register(make.register()).run_id
    assert (look().run.id, look().sparkline) == (again, None)


def test_five_hundred_runs_fit_on_a_page_and_one_of_them_is_found(services, run_id, make):
    services.ingest.accept(run_id, make.batch(0, [1, 2]))
    with services.database.transaction() as session:
        first = session.get(RunRow, run_id)
        names = [column.name for column in RunRow.__table__.columns]
        columns = {name: getattr(first, name) for name in names}
        copies = [
            RunRow(**columns | {"id": f"{number:032x}", "name": f"sweep {number}"})
            for number in range(1, 500)
        ]
        session.add_all(copies)
    page = services.overview.rows(RunQuery(limit=500))
    assert (len(page.rows), page.total, page.next_cursor) == (500, 500, None)
    assert [row.run.id for row in page.rows if row.sparkline is not None] == [run_id]
    (found,) = services.overview.rows(RunQuery(name="sweep 321")).rows
    assert found.run.id == f"{321:032x}"
