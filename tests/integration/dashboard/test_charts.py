"""A run's panels from a real collector: drawn, brought up to date, zoomed, after a rollback."""

import json
import math

import pytest

from dashboard import ids
from dashboard.callbacks.panels import PanelView, draw_panels, extend_panels, shows_newest
from dashboard.errors import CollectorUnavailableError, MissingError

WIDE = 1000
MOST_POINTS = 4000


class Page:
    """What a browser does with the panels of a run."""

    def __init__(self, ask, collector, run_id):
        self.ask, self.collector, self.run_id = ask, collector, run_id
        self.figures = self.drawn = self.series = None

    def draw(self, width=WIDE, **look):
        """Redraw everything."""
        panels = self.ask(
            self.collector,
            lambda client: draw_panels(client, self.run_id, PanelView(width=width, **look)),
        )
        self.figures, self.series = dict(panels.figures), panels.series
        self.drawn = {
            "number": 1,
            "panels": panels.shown,
            "read_to": panels.read_to,
            "drawn_at": 0.0,
        }
        return self

    def extend(self):
        """Add what is new, as plotly's extendTraces does; returns the extension."""
        drawn = json.loads(json.dumps(self.drawn))  # through the browser's store
        extension = self.ask(
            self.collector, lambda client: extend_panels(client, self.run_id, drawn)
        )
        if extension is not None:
            assert json.loads(json.dumps(extension.updates, allow_nan=False)) == extension.updates
            for panel, (columns, traces) in extension.updates.items():
                for name, parts in columns.items():
                    for trace, part in zip(traces, parts, strict=True):
                        self.figures[panel]["data"][trace][name] += part
            self.drawn |= {"panels": extension.shown, "read_to": extension.read_to}
        return extension

    def line(self, panel, index=0):
        trace = self.figures[panel]["data"][index]
        return dict(zip(trace["x"], trace["y"], strict=True))

    def lines(self, panel):
        """Everything that is drawn of the lines themselves."""
        count = len(self.drawn["panels"][panel]["lines"])
        return [self.line(panel, index) for index in range(count)]


@pytest.fixture
def open_page(ask):
    return lambda collector, job: Page(ask, collector, job.run_id)


@pytest.fixture
def page(open_page, collector, job):
    return open_page(collector, job)


def frames(steps, **values):
    return [{"step": step, "values": values} for step in steps]


class TestDrawing:
    def test_of_a_run_that_has_not_begun_every_panel_is_empty(self, page):
        page.draw()
        assert all(page.lines(panel) == [] for panel in ids.PANELS)
        assert (page.series, page.drawn["read_to"]) == ([], 0)
        assert page.drawn["panels"][ids.CHART_LOSS]["lines"] == []

    def test_panels_have_their_lines_and_picked_series(self, job, page):
        job.report([1, 2, 3], 1.5)
        page.draw(picked=("grad_norm", "never heard of"))
        assert page.lines(ids.CHART_LOSS) == [{1: 1.5, 2: 1.5, 3: 1.5}]
        assert page.lines(ids.CHART_GRADIENT) == page.lines(ids.CHART_PICKED)
        assert page.lines(ids.CHART_RATE) == [{1: 1.0, 2: 1.0, 3: 1.0}]
        assert page.lines(ids.CHART_Z_LOSS) == []
        assert page.series == sorted(page.series)
        assert len(page.series) == 5
        assert page.drawn["read_to"] == 3

    @pytest.mark.parametrize(("width", "most"), [(320, 320), (1, 200)])
    def test_as_many_points_as_pixels_and_no_spike_is_lost(self, job, page, width, most):
        job.report(range(1, 1001))
        job.report([1001], 77.0)
        job.report(range(1002, 2001))
        page.draw(width=width)
        loss = page.line(ids.CHART_LOSS)
        assert most / 2 < len(loss) <= most
        assert max(loss.values()) == 77.0
        assert max(loss) == 2000

    def test_a_zoom_shows_every_step_within(self, job, page):
        job.report(range(1, 2001))
        page.draw(width=200, zoom=(100.5, 160.2))
        assert list(page.line(ids.CHART_LOSS)) == list(range(100, 162))

    @pytest.mark.parametrize("zoom", [(-5.0, -1.0), (1e6, 1e300), (-1e300, 1e300)], ids=str)
    def test_a_zoom_to_where_nothing_is_draws_nothing_wrong(self, job, page, zoom):
        job.report([1, 2])
        page.draw(zoom=zoom)
        assert set(page.line(ids.CHART_LOSS)) <= {1, 2}

    def test_only_the_loss_changes_its_scale(self, job, page):
        job.report([1, 2])
        logs = [page.draw(log_loss=log).drawn["panels"] for log in (False, True)]
        assert [panels[ids.CHART_LOSS]["log"] for panels in logs] == [False, True]
        assert all(panels[ids.CHART_GRADIENT]["log"] for panels in logs)

    def test_nan_is_a_gap_and_a_mark(self, job, page):
        job.report([1, 2])
        job.report([3], "NaN")
        page.draw()
        assert page.line(ids.CHART_LOSS) == {1: 2.0, 2: 2.0, 3: None}
        assert page.figures[ids.CHART_LOSS]["data"][1]["x"] == [3]

    def test_what_the_browser_keeps_of_it_is_small(self, job, page):
        sources = {f'loss{{source="{number}"}}': 1.0 for number in range(20)}
        job.report(frames=frames(range(1, 1001), **sources, grad_norm=1.0, lr=1e-3))
        page.draw()
        assert len(json.dumps(page.drawn, allow_nan=False)) < 3000

    def test_missing_run_and_unavailable_collector_raise(
        self, start_collector, make_job, open_page
    ):
        collector = start_collector()
        job = make_job(collector)
        job.report([1])
        page = open_page(collector, job).draw()
        job.end()
        job.delete()
        for act in (page.draw, page.extend):
            with pytest.raises(MissingError):
                act()
        collector.stop()
        for act in (page.draw, page.extend):
            with pytest.raises(CollectorUnavailableError):
                act()


class TestNewSamples:
    def test_extension_equals_a_redraw(self, job, page):
        job.report(range(1, 101))
        page.draw()
        job.report(range(101, 131), 2.0)
        extension = page.extend()
        added = extension.updates[ids.CHART_LOSS][0]["x"][0]
        assert added == list(range(101, 131))
        assert not extension.outgrown
        extended = {panel: page.lines(panel) for panel in ids.PANELS}
        page.draw()
        assert extended == {panel: page.lines(panel) for panel in ids.PANELS}
        assert page.drawn["read_to"] == 130

    def test_without_any_there_is_nothing_to_do_however_often_it_is_asked(self, job, page):
        job.report(range(1, 11))
        page.draw()
        assert page.extend() is None
        job.report([11])
        assert page.extend() is not None
        assert page.extend() is None

    def test_those_that_come_a_little_late_are_added_to_their_line(self, job, page):
        job.report(frames=frames(range(1, 51), loss=2.0, grad_norm=1.0))
        job.report(frames=frames(range(51, 101), loss=2.0))
        page.draw()
        job.report(frames=frames(range(51, 101), grad_norm=3.0))
        extension = page.extend()
        assert list(extension.updates) == [ids.CHART_GRADIENT]
        assert list(page.line(ids.CHART_GRADIENT)) == list(range(1, 101))
        assert list(page.line(ids.CHART_LOSS)) == list(range(1, 101))

    def test_a_series_that_ends_leaves_the_others_going_on(self, job, page):
        job.report(frames=frames(range(1, 11), loss=2.0, grad_norm=1.0))
        page.draw()
        for step in range(11, 211, 50):
            job.report(frames=frames(range(step, step + 50), loss=2.0))
            page.extend()
        assert list(page.line(ids.CHART_LOSS)) == list(range(1, 211))
        assert list(page.line(ids.CHART_GRADIENT)) == list(range(1, 11))

    def test_nan_and_spikes_are_added_as_marks_and_call_for_a_drawing(self, job, page):
        job.report(range(1, 101))
        page.draw()
        job.report([101], "NaN")
        job.report([102], "Infinity")
        job.report([103], 1e30)
        assert page.extend().outgrown
        assert [page.line(ids.CHART_LOSS)[step] for step in (101, 102)] == [None, None]
        lost, above = page.figures[ids.CHART_LOSS]["data"][1:3]
        assert (lost["x"], above["x"]) == ([101, 102], [103])

    def test_the_first_ones_of_a_run_call_for_a_drawing(self, job, page):
        page.draw()
        assert page.extend().outgrown  # there may be some now
        job.report([1, 2])
        extension = page.extend()
        assert (extension.updates, extension.outgrown) == ({}, True)
        page.draw()
        assert page.lines(ids.CHART_LOSS) == [{1: 2.0, 2: 2.0}]

    def test_the_first_ones_of_a_known_series_are_drawn_and_call_for_a_scale(self, page, job):
        job.report(frames=frames([1], loss="NaN"))
        page.draw()
        job.report([2])
        extension = page.extend()
        assert extension.outgrown
        assert page.line(ids.CHART_LOSS) == {1: None, 2: 2.0}

    def test_of_a_page_that_has_slept_for_long_no_more_is_sent_than_it_can_show(self, job, page):
        job.report([1])
        page.draw()
        for first in range(2, 6002, 1000):
            job.report(range(first, first + 1000))
        extension = page.extend()
        assert len(page.line(ids.CHART_LOSS)) <= MOST_POINTS + 1
        assert max(page.line(ids.CHART_LOSS)) == extension.read_to == 6001


class TestZoom:
    def test_zoom_into_the_past_gets_no_extension(self, job, page):
        job.report(range(1, 501))
        past = (100, 200)
        page.draw(zoom=past)
        assert not shows_newest(past, page.drawn["read_to"])

    @pytest.mark.parametrize("zoom", [None, (400, 500), (400, 515)], ids=str)
    def test_zoom_at_the_newest_step_is_extended(self, job, page, zoom):
        job.report(range(1, 501))
        page.draw(zoom=zoom)
        assert shows_newest(zoom, page.drawn["read_to"])
        job.report([501])
        page.extend()
        assert max(page.line(ids.CHART_LOSS)) == 501

    def test_behind_the_end_of_the_range_nothing_more_is_asked_for(self, job, page):
        job.report(range(1, 501))
        zoom = (400, 503)
        page.draw(zoom=zoom)
        job.report(range(501, 511))
        page.extend()
        assert not shows_newest(zoom, page.drawn["read_to"])


class TestRollback:
    @pytest.fixture
    def rewound(self, job, page):
        command = job.break_down()
        page.draw()
        job.post(f"/commands/{command['id']}/approve", {"reason": "I agree"})
        job.report([12], "NaN")
        job.carry_out(command)
        return job

    def test_what_was_drawn_before_gets_nothing_of_the_new_attempt(self, rewound, page):
        page.extend()  # step 12 of the old attempt
        before = page.line(ids.CHART_LOSS)
        rewound.report(range(5, 9), 1.5)
        for _ in range(2):  # however often: a drawing may fail
            extension = page.extend()
            assert (extension.updates, extension.outgrown) == ({}, True)
        assert page.line(ids.CHART_LOSS) == before
        page.draw()
        assert page.extend() is None

    def test_redraw_after_a_rollback_shows_both_branches(self, rewound, page):
        page.draw()
        assert page.drawn["panels"][ids.CHART_LOSS]["attempt"] == 2
        assert list(page.line(ids.CHART_LOSS)) == [1, 2, 3, 4]
        rewound.report(range(5, 9), 1.5)
        page.extend()
        live = page.line(ids.CHART_LOSS)
        assert list(live) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert live[8] == 1.5
        left = [one for one in page.figures[ids.CHART_LOSS]["data"] if one.get("meta")]
        assert [max(one["x"]) for one in left] == [12]
        assert all(not isinstance(y, float) or math.isfinite(y) for y in left[0]["y"])

    def test_zoom_beyond_the_current_step_is_extended(self, rewound, page):
        zoom = (6, 9)
        page.draw(zoom=zoom)
        assert shows_newest(zoom, page.drawn["read_to"])
        rewound.report(range(5, 8), 1.5)
        page.extend()
        assert {6: 1.5, 7: 1.5}.items() <= page.line(ids.CHART_LOSS).items()
