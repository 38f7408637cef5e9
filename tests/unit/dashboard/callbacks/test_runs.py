"""The list of runs: queries and updated rows."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from dash import no_update
from plotly.utils import PlotlyJSONEncoder

from dashboard.callbacks.runs import MOST, PAGE, RunsFilter, list_runs
from dashboard.client import Collector
from dashboard.errors import CollectorUnavailableError
from dashboard.visitor import Visitor
from stabilizer.protocol.queries import RunQuery, RunSort
from stabilizer.protocol.runs import Run, RunState
from stabilizer.protocol.views import Overview, RunSummary, Sparkline

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def summary(number, *, age=30, **changes):
    fields = {
        "id": f"{number:032x}",
        "name": f"run {number}",
        "key": "",
        "state": "running",
        "mode": "propose",
        "attempt": 1,
        "step": 100,
        "world_size": 1,
        "global_batch": 64,
        "git_revision": None,
        "rules_hash": "h",
        "config": {},
        "created_at": NOW - timedelta(days=1),
        "last_seen_at": NOW - timedelta(seconds=age),
        "open_incident_id": None,
    }
    row = {
        name: changes.pop(name)
        for name in ("phase", "num_proposed", "sparkline")
        if name in changes
    }
    return RunSummary(run=Run(**fields | changes), **row)


class Shelf:
    """A collector with these runs; records the queries."""

    def __init__(self, rows=(), total=None):
        self.rows, self.total = list(rows), total
        self.queries = []

    def __call__(self, request):
        self.queries.append(request.url.params)
        limit = int(request.url.params.get("limit", 50))
        total = len(self.rows) if self.total is None else self.total
        page = Overview(rows=tuple(self.rows[:limit]), total=total)
        return httpx.Response(200, content=page.model_dump_json())

    def list(self, shown=None, now=NOW, **chosen):
        async def scenario():
            collector = Collector("http://c", transport=httpx.MockTransport(self))
            client = collector.for_visitor(Visitor(name="ada"))
            try:
                return await list_runs(client, RunsFilter(**chosen), shown, now)
            finally:
                await collector.close()

        return asyncio.run(scenario())


def drawn(component):
    """What the browser is sent of a component."""
    return json.loads(json.dumps(component, cls=PlotlyJSONEncoder))


def rows_of(table):
    """Rows of a table as the browser is sent it, each as its cells and the name of its class."""
    rows = drawn(table)["props"]["children"][1]["props"]["children"]
    return [(row["props"]["children"], row["props"]["className"]) for row in rows]


def renewed(view):
    """Places of the rows that are renewed alone."""
    assert view.body is no_update
    places = [place for place, cells in enumerate(view.cells) if cells is not no_update]
    assert places == [place for place, name in enumerate(view.names) if name is not no_update]
    return places


def patched(rows, view):
    """What a browser makes of renewed rows."""
    cells = drawn([None if one is no_update else one for one in view.cells])
    fresh = zip(cells, view.names, strict=True)
    return [
        old if new is None else (new, name) for old, (new, name) in zip(rows, fresh, strict=True)
    ]


class TestFilter:
    def test_without_a_choice_the_newest_run_comes_first(self):
        query = RunsFilter().query()
        assert query == RunQuery(
            name="", states=(), sort=RunSort.CREATED_AT, descending=True, limit=PAGE
        )

    def test_every_choice_is_asked_for(self):
        query = RunsFilter(search=" idefics ", states=("lost", "failed"), sort="step").query()
        assert query.name == "idefics"
        assert query.states == (RunState.LOST, RunState.FAILED)
        assert (query.sort, query.descending) == (RunSort.STEP, True)

    def test_names_go_from_a_to_z(self):
        assert not RunsFilter(sort="name").query().descending

    @pytest.mark.parametrize(
        "odd",
        [
            {"search": "x" * 10_000},
            {"states": ("sleeping", "", "RUNNING")},
            {"sort": "colour"},
            {"sort": ""},
            {"limit": 0},
            {"limit": -5},
            {"limit": 10**9},
        ],
        ids=str,
    )
    def test_what_no_page_of_ours_sends_is_still_a_query(self, odd):
        query = RunsFilter(**odd).query()
        assert PAGE <= query.limit <= MOST
        assert query.states == ()
        assert query.sort is RunSort.CREATED_AT
        assert len(query.name) <= 200

    @pytest.mark.parametrize("search", ["a%b", "_", "'; drop table runs", "\u00e9 \u4f60", "[x]\\"])
    def test_odd_names_reach_the_collector_as_they_are(self, search):
        shelf = Shelf()
        shelf.list(search=search)
        assert shelf.queries[0]["name"] == search


class TestWhole:
    def test_a_first_list_is_drawn_whole(self):
        view = Shelf([summary(1), summary(2)]).list()
        rows = rows_of(view.body)
        assert ["run 1" in json.dumps(row) for row in rows] == [True, False]
        assert list(view.shown) == [f"{1:032x}", f"{2:032x}"]
        assert (view.count, view.has_more) == ("2", False)

    def test_every_row_has_a_place_of_its_own(self):
        table = Shelf([summary(1), summary(2)]).list().body
        rows = drawn(table)["props"]["children"][1]["props"]["children"]
        assert [row["props"]["id"]["place"] for row in rows] == [0, 1]

    @pytest.mark.parametrize("later", [[1], [1, 2, 3], [3, 1, 2]])
    def test_more_or_fewer_runs_are_drawn_whole(self, later):
        shown = Shelf([summary(1), summary(2)]).list().shown
        view = Shelf([summary(number) for number in later]).list(shown)
        assert len(rows_of(view.body)) == len(later)
        assert list(view.shown) == [f"{number:032x}" for number in later]
        assert (view.cells, view.names) == ([no_update] * 2, [no_update] * 2)

    def test_what_the_browser_holds_may_be_nothing(self):
        assert len(rows_of(Shelf([summary(1)]).list(shown={}).body)) == 1


class TestRows:
    def test_without_a_change_nothing_is_drawn(self):
        shelf = Shelf([summary(number) for number in range(5)])
        assert renewed(shelf.list(shelf.list().shown)) == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"step": 101},
            {"state": "lost"},
            {"mode": "auto"},
            {"attempt": 2},
            {"phase": "cool-down"},
            {"num_proposed": 1},
            {"age": 8},
            {"age": 31},
            {"sparkline": Sparkline(steps=(1, 2), values=(3.0, float("nan")))},
        ],
        ids=str,
    )
    def test_a_row_that_shows_something_else_is_drawn_and_no_other(self, changes):
        first = Shelf([summary(number) for number in range(5)]).list()
        after = Shelf([summary(number, **(changes if number == 3 else {})) for number in range(5)])
        view = after.list(first.shown)
        assert renewed(view) == [3]
        assert patched(rows_of(first.body), view) == rows_of(after.list().body)
        changed = [run for run, print_ in view.shown.items() if first.shown[run] != print_]
        assert changed == [f"{3:032x}"]

    @pytest.mark.parametrize(
        ("later", "places"),
        [([2, 1, 3, 4], [0, 1]), ([1, 2, 3, 9], [3]), ([4, 1, 2, 3], [0, 1, 2, 3])],
        ids=["two changed places", "another", "one came to the front"],
    )
    def test_of_another_order_the_places_with_another_run_are_drawn(self, later, places):
        first = Shelf([summary(number) for number in (1, 2, 3, 4)]).list()
        after = Shelf([summary(number) for number in later])
        view = after.list(first.shown)
        assert renewed(view) == places
        assert patched(rows_of(first.body), view) == rows_of(after.list().body)
        assert list(view.shown) == [f"{number:032x}" for number in later]

    def test_what_no_row_shows_draws_none(self):
        first = Shelf([summary(1, age=61.2)]).list()
        view = Shelf([summary(1, age=61.9, config={"lr": 1})]).list(first.shown)
        assert renewed(view) == []

    def test_time_that_passes_draws_nothing(self):
        """The page itself keeps "3 min ago" true."""
        shelf = Shelf([summary(1, age=3), summary(2, age=3600)])
        view = shelf.list(shelf.list().shown, NOW + timedelta(hours=5))
        assert renewed(view) == []

    def test_one_that_changed_among_five_hundred_is_the_only_one_drawn(self):
        shelf = Shelf([summary(number, age=4000) for number in range(500)])
        first = shelf.list(limit=MOST)
        shelf.rows[321] = summary(321, age=4000, step=999)
        view = shelf.list(first.shown, limit=MOST)
        assert renewed(view) == [321]
        assert "999" in json.dumps(drawn(view.cells[321]))
        assert len(first.shown) == len(view.shown) == 500


class TestEmpty:
    def words(self, view):
        return json.dumps(drawn(view.body))

    def test_empty_list_explains_how_to_add_a_run(self):
        view = Shelf().list()
        assert "StabilizerCallback" in self.words(view)
        assert (view.shown, view.count, view.has_more) == ({}, "0", False)

    @pytest.mark.parametrize("chosen", [{"search": "x"}, {"states": ("lost",)}])
    def test_filter_without_matches_has_a_text(self, chosen):
        assert "No matching runs" in self.words(Shelf().list(**chosen))

    def test_blank_search_is_no_filter(self):
        assert "No runs yet" in self.words(Shelf().list(search="  "))

    def test_when_the_first_run_comes_the_table_is_drawn(self):
        shown = Shelf().list().shown
        view = Shelf([summary(1)]).list(shown)
        assert "run 1" in self.words(view)

    def test_empty_page_returns_after_the_last_run_is_deleted(self):
        shown = Shelf([summary(1)]).list().shown
        assert "No runs yet" in self.words(Shelf().list(shown))


class TestMany:
    @pytest.mark.parametrize(
        ("total", "limit", "count", "has_more"),
        [
            (50, 50, "50", False),
            (51, 50, "50 of 51", True),
            (500, 100, "100 of 500", True),
            (12_345, 500, "500 of 12,345", False),
        ],
    )
    def test_count_and_show_more(self, total, limit, count, has_more):
        rows = [summary(number) for number in range(min(total, limit))]
        view = Shelf(rows, total).list(limit=limit)
        assert (view.count, view.has_more) == (count, has_more)


def test_unavailable_collector_raises():
    class Dead(Shelf):
        def __call__(self, request):
            raise httpx.ConnectError("refused")

    with pytest.raises(CollectorUnavailableError):
        Dead().list()
