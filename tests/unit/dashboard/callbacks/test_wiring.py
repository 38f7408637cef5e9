"""The callbacks as a browser calls them: their ids exist, and their responses fit."""

import dataclasses
import itertools
import json
import re

import httpx
import pytest
from fastapi.testclient import TestClient

from dashboard import ids
from dashboard.actions import answer, arming, end_silence, mode, send_command, silence
from dashboard.app.factory import create_app
from dashboard.settings import load_dashboard_settings

RUN = "a" * 32
COMMAND = "c" * 32
CONTROL = {"disarmed": False, "reason": "", "actor": "", "changed_at": None, "silences": []}
DASH = re.compile(r"_pages_\w+\Z")
"""What Dash puts on every page of its own."""


def named_in_ids():
    """Everything that ids.py names."""
    for name, value in vars(ids).items():
        if name.isupper() and isinstance(value, str):
            yield value
        elif isinstance(value, dict) and name.isupper():
            yield from value.values()


ACTIONS = (answer, arming, end_silence, mode, send_command, silence)


def named_in_actions():
    """Ids of every dialog and of its own fields."""
    for action in ACTIONS:
        yield from dataclasses.asdict(action.FORM).values()
        prefix = action.FORM.dialog.removesuffix("dialog")
        own = (value for name, value in vars(action).items() if name.isupper())
        yield from (one for one in own if isinstance(one, str) and one.startswith(prefix))


NEWS, TICK = "live-frames.data", "clock.n_intervals"
VIEW = {"width": 800, "zoom": [100, 200.5], "picked": ["loss"], "log": True}
DECISIONS = {"run_id": RUN, "count": 4}
APPROVAL = {ids.ANSWER_TARGET: {"verb": "approve", "id": COMMAND}, answer.FORM.dialog: True}
SEND = {
    ids.RUN_ID: RUN,
    ids.SEND_ATTEMPT: 1,
    send_command.KIND: "pause",
    send_command.FORM.dialog: True,
}
OCCASIONS = ("live-decisions.data", TICK)
LONG_AGO = -60.0
SHOWN = {
    "number": 3,
    "panels": {},
    "read_to": 900,
    "drawn_at": LONG_AGO,
    "asked": {"view": VIEW, "decisions": DECISIONS},
}


class House:
    """A dashboard with a scripted collector."""

    def __init__(self, clock):
        self.requests = []
        settings = load_dashboard_settings(person="ada", collector_url="http://collector")
        app = create_app(settings, clock, httpx.MockTransport(self._answer))
        self.client = TestClient(app, base_url="http://127.0.0.1:8050")

    def _answer(self, request):
        self.requests.append((request.method, request.url.path, request.content))
        is_switch = request.url.path == "/api/v1/control"
        return httpx.Response(200, json=CONTROL) if is_switch else httpx.Response(503)

    def __enter__(self):
        self.client.__enter__()
        self.callbacks = self.client.get("/_dash-dependencies").json()
        return self

    def __exit__(self, *given):
        self.client.__exit__(*given)

    def call(self, output, triggered, **values):
        """Do what a page does when something has changed; values are those of the ids named."""
        (callback,) = [one for one in self.callbacks if output in outputs_of(one)]

        def properties(kind):
            return [fill(one, values) for one in callback[kind]]

        # No component of this page matches the pattern.
        outputs = [
            [] if name[0].startswith("{") else dict(zip(("id", "property"), name, strict=True))
            for name in outputs_of(callback)
        ]
        message = {
            "output": callback["output"],
            "outputs": outputs if len(outputs) > 1 else outputs[0],
            "inputs": properties("inputs"),
            "state": properties("state"),
            "changedPropIds": [triggered],
        }
        return self.client.post("/_dash-update-component", json=message)


def fill(named, values):
    if named["id"].startswith("{"):
        kind = json.loads(named["id"])["type"]
        return [
            {"id": {"id": one, "type": kind}, "property": named["property"], "value": value}
            for one, value in values.get(kind, {}).items()
        ]
    return {**named, "value": values.get(named["id"])}


def outputs_of(callback):
    """Pairs of id and property; what may be set twice keeps its mark."""
    if callback.get("no_output"):
        return []
    return [tuple(name.rsplit(".", 1)) for name in callback["output"].strip(".").split("...")]


def names_of(callback):
    """Ids that a callback names, of patterns their types."""
    named = [one["id"] for one in callback.get("inputs", []) + callback.get("state", [])]
    named += [component for component, _ in outputs_of(callback)]
    running = callback.get("running") or {}
    named += [name.rsplit(".", 1)[0] for name in running.get("running", {})]
    return {json.loads(name)["type"] if name.startswith("{") else name for name in named}


@pytest.fixture(scope="module")
def module_clock():
    class Clock:
        def now(self):
            raise AssertionError("nothing here tells the time")

        def monotonic(self):
            return 0.0

    return Clock()


@pytest.fixture(scope="module")
def house(module_clock):
    with House(module_clock) as opened:
        yield opened


@pytest.fixture
def requests(house):
    house.requests.clear()
    return house.requests


class TestNames:
    def test_every_id_of_a_callback_is_defined(self, house):
        named = set(itertools.chain.from_iterable(map(names_of, house.callbacks)))
        known = {*named_in_ids(), *named_in_actions()}
        assert len(named) > 50
        assert {name for name in named - known if not DASH.match(name)} == set()

    def test_ids_are_unique(self):
        named = [*named_in_ids(), *named_in_actions()]
        assert len(named) == len(set(named))

    def test_every_property_is_set_by_one_callback_unless_both_say_so(self, house):
        pairs = [pair for callback in house.callbacks for pair in outputs_of(callback)]
        assert len(pairs) == len(set(pairs))

    def test_news_that_are_asked_for_over_http_are_none_and_no_mistake(self, house):
        (callback,) = [one for one in house.callbacks if one.get("websocket")]
        message = {"output": callback["output"], "outputs": [], "inputs": [], "changedPropIds": []}
        assert house.client.post("/_dash-update-component", json=message).is_success

    def test_a_second_dashboard_in_the_process_is_wired_like_the_first(self, house, module_clock):
        with House(module_clock) as second:
            assert second.callbacks == house.callbacks
            answer = second.call(("armed-badge", "children"), "live-control.data")
            assert answer.status_code == 200
        assert house.call(("armed-badge", "children"), "live-control.data").status_code == 200


class TestClicks:
    """A click is one only with a count: buttons that come and go trigger without one."""

    def opened(self, house, kind, clicks):
        form, opener = {
            "answer": (answer.FORM, {kind: {COMMAND: clicks}}),
            "arming": (arming.FORM, {ids.OPEN_ARMING: clicks}),
        }["arming" if kind == ids.OPEN_ARMING else "answer"]
        where = (
            f'{{"id":"{COMMAND}","type":"{kind}"}}.n_clicks'
            if form is answer.FORM
            else f"{kind}.n_clicks"
        )
        facts = {ids.CONTROL_FACTS: {"disarmed": False}}
        return house.call((form.dialog, "children"), where, **opener, **facts)

    @pytest.mark.parametrize("clicks", [None, 0])
    @pytest.mark.parametrize("kind", [ids.APPROVE, ids.REJECT, ids.CANCEL, ids.OPEN_ARMING])
    def test_without_one_no_dialog_opens_and_nothing_is_asked(self, house, requests, kind, clicks):
        assert self.opened(house, kind, clicks).status_code == 204
        assert requests == []

    @pytest.mark.parametrize(
        "form", [action.FORM for action in ACTIONS], ids=lambda form: form.dialog
    )
    def test_a_form_that_has_just_opened_does_nothing(self, house, requests, form):
        values = {form.reason: "a fire", ids.RUN_ID: RUN, form.submit: None}
        answer = house.call((form.status, "children"), f"{form.submit}.n_clicks", **values)
        assert answer.status_code == 204
        assert requests == []


class TestArming:
    def open(self, house, disarmed):
        answer = house.call(
            (arming.FORM.dialog, "children"),
            f"{ids.OPEN_ARMING}.n_clicks",
            **{ids.OPEN_ARMING: 1, ids.CONTROL_FACTS: {"disarmed": disarmed}},
        ).json()["response"]
        return answer[arming.FORM.dialog]["children"], answer[ids.ARMING_TARGET]["data"]

    def submit(self, house, target, facts):
        values = {
            arming.FORM.submit: 1,
            arming.FORM.reason: "a fire",
            ids.ARMING_TARGET: target,
            ids.CONTROL_FACTS: {"disarmed": facts},
        }
        triggered = f"{arming.FORM.submit}.n_clicks"
        return house.call((arming.FORM.status, "children"), triggered, **values)

    @pytest.mark.parametrize("disarmed", [False, True])
    def test_a_dialog_does_what_it_says_though_another_was_quicker(self, house, requests, disarmed):
        form, target = self.open(house, disarmed)
        assert ("Arm" if disarmed else "Disarm all") in json.dumps(form)
        answer = self.submit(house, target, facts=not disarmed)
        assert answer.status_code == 200
        (sent,) = [json.loads(content) for method, _, content in requests if method == "PUT"]
        assert sent == {"disarmed": not disarmed, "reason": "a fire"}

    def test_without_a_dialog_nothing_is_turned(self, house, requests):
        assert self.submit(house, None, facts=False).status_code == 204
        assert requests == []


class TestAway:
    """With the collector away a page keeps what it knew."""

    def test_page_keeps_its_content_without_a_collector(self, house):
        values = {ids.RUN_ID: RUN, ids.TIMELINE_LIMIT: 40, ids.RUN_FACTS: {"digests": {}}}
        where = (ids.RUN_HEADER, "children")
        assert house.call(where, "live-decisions.data", **values).status_code == 204
        values[ids.RUN_FACTS] = None
        told = house.call(where, "live-decisions.data", **values)
        assert "not responding" in told.text

    def test_charts_stay_and_an_empty_page_shows_the_error(self, house):
        values = {ids.RUN_ID: RUN, ids.CHART_WIDTH: 800}
        where = (ids.CHART_LOSS, "figure")
        told = house.call(where, "chart-width.data", **values).json()["response"]
        assert "Not available" in json.dumps(told[ids.CHARTS_PROBLEM])
        values[ids.SHOWN] = SHOWN
        kept = house.call(where, "chart-width.data", **values).json()["response"]
        assert set(kept) == {ids.CHARTS_PROBLEM, ids.SHOWN}
        assert "Not available" in json.dumps(kept[ids.CHARTS_PROBLEM])
        # Nothing else of it: it may have been extended meanwhile.
        changed = kept[ids.SHOWN]["data"]["operations"]
        assert [one["location"] for one in changed] == [["asked"], ["drawn_at"]]
        assert changed[0]["params"] == {"value": None}

    def test_heatmap_stays_and_is_marked_as_out_of_date(self, house):
        values = {
            ids.RUN_ID: RUN,
            ids.CHART_WIDTH: 800,
            ids.HEATMAP_SHOWN: {"asked": {}, "step": 9},
        }
        told = house.call((ids.HEATMAP, "figure"), "chart-width.data", **values).json()["response"]
        assert set(told) == {ids.HEATMAP_PROBLEM, ids.HEATMAP_SHOWN}
        assert "Not available" in json.dumps(told[ids.HEATMAP_PROBLEM])
        assert told[ids.HEATMAP_SHOWN]["data"] == {"asked": None, "step": 9}

    @pytest.mark.parametrize(
        ("where", "values"),
        [
            ((ids.CHART_LOSS, "figure"), {}),  # not laid out yet
            ((ids.EXTENSION, "data"), {}),  # nothing drawn yet
            ((ids.RUN_PLACE, "children"), {}),
            ((ids.ARMED_BADGE, "children"), None),
        ],
        ids=str,
    )
    def test_unknown_parts_are_left_unchanged(self, house, where, values):
        answer = house.call(where, "live-frames.data", **{ids.RUN_ID: RUN, **(values or {})})
        assert answer.status_code in ((204,) if values is not None else (200,))


class TestOtherThanAskedFor:
    """Panels that are out of date are redrawn."""

    def redraw(self, house, triggered, shown, **changes):
        """Extend the panels; return whether a redraw was requested."""
        values = {
            ids.RUN_ID: RUN,
            ids.SHOWN: shown,
            ids.CHART_WIDTH: VIEW["width"],
            ids.RUN_RANGE: VIEW["zoom"],
            ids.PICKED: VIEW["picked"],
            ids.LOG_LOSS: VIEW["log"],
            ids.LIVE_DECISIONS: DECISIONS,
        }
        answer = house.call((ids.EXTENSION, "data"), triggered, **values | changes)
        if answer.status_code == 204:
            return False
        assert set(answer.json()["response"]) == {ids.REDRAW}
        return True

    @pytest.mark.parametrize("triggered", [NEWS, TICK])
    def test_those_that_show_what_was_asked_for_stay(self, house, triggered):
        assert not self.redraw(house, triggered, SHOWN)

    @pytest.mark.parametrize("triggered", [NEWS, TICK])
    def test_after_a_drawing_that_failed_the_next_occasion_is_taken(self, house, triggered):
        assert self.redraw(house, triggered, {**SHOWN, "asked": None})

    def test_but_not_again_and_again_at_once(self, house):
        assert not self.redraw(house, NEWS, {**SHOWN, "asked": None, "drawn_at": -1.0})
        assert self.redraw(house, NEWS, {**SHOWN, "asked": None, "drawn_at": -2.0})

    @pytest.mark.parametrize(
        "change",
        [
            {ids.RUN_RANGE: [100, 200]},
            {ids.CHART_WIDTH: 801},
            {ids.PICKED: []},
            {ids.LOG_LOSS: False},
            {ids.LIVE_DECISIONS: {"run_id": RUN, "count": 5}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_drawing_that_never_came_is_missed_by_the_clock(self, house, change):
        assert not self.redraw(house, NEWS, SHOWN, **change)  # it may be under way
        assert self.redraw(house, TICK, SHOWN, **change)

    def test_so_is_the_first_one_of_all(self, house):
        assert not self.redraw(house, NEWS, None)
        assert self.redraw(house, TICK, None)

    def test_charts_of_an_earlier_version_are_redrawn(self, house):
        old = {name: value for name, value in SHOWN.items() if name != "asked"}
        assert self.redraw(house, NEWS, old)

    @pytest.mark.parametrize(("triggered", "is_asked"), [(TICK, False), (NEWS, True)])
    def test_a_map_is_asked_for_by_news_and_by_the_clock_only_when_missed(
        self, house, requests, triggered, is_asked
    ):
        chosen = {"metric": None, "kind": None, "colouring": None, "decisions": DECISIONS}
        asked = {"width": 800, "zoom": None, **chosen}
        values = {
            ids.RUN_ID: RUN,
            ids.CHART_WIDTH: 800,
            ids.LIVE_DECISIONS: DECISIONS,
            ids.HEATMAP_SHOWN: {"asked": asked, "step": 9},
        }
        house.call((ids.HEATMAP, "figure"), triggered, **values)
        assert bool(requests) is is_asked
        requests.clear()
        values[ids.HEATMAP_SHOWN] = {"asked": None, "step": 9}
        house.call((ids.HEATMAP, "figure"), triggered, **values)
        assert requests


class TestLookingAhead:
    """An open dialog refreshes its preview as the run advances; a closed one sends no request."""

    def looked(self, house, requests, form, triggered, values):
        """Refresh the preview of a form; return the requests and the content."""
        answer = house.call((form.preview, "children"), triggered, **values)
        paths = [path for _, path, _ in requests]
        return paths, answer.text if answer.status_code != 204 else None

    @pytest.mark.parametrize("triggered", OCCASIONS)
    def test_an_approval_shows_what_it_would_do_by_now(self, house, requests, triggered):
        paths, shown = self.looked(house, requests, answer.FORM, triggered, APPROVAL)
        assert paths == [f"/api/v1/commands/{COMMAND}/preview"]
        assert "answered with status 503" in shown  # better than what holds no more

    @pytest.mark.parametrize("triggered", OCCASIONS)
    @pytest.mark.parametrize(
        "change",
        [
            {answer.FORM.dialog: False},
            {answer.FORM.dialog: None},
            {ids.ANSWER_TARGET: None},
            {ids.ANSWER_TARGET: {"verb": "reject", "id": COMMAND}},
        ],
        ids=str,
    )
    def test_no_other_answer_does(self, house, requests, triggered, change):
        values = {**APPROVAL, **change}
        assert self.looked(house, requests, answer.FORM, triggered, values) == ([], None)

    @pytest.mark.parametrize("triggered", [*OCCASIONS, f"{send_command.KIND}.value"])
    def test_so_does_a_command_by_hand(self, house, requests, triggered):
        paths, shown = self.looked(house, requests, send_command.FORM, triggered, SEND)
        assert paths == [f"/api/v1/runs/{RUN}/commands/preview"]
        assert "answered with status 503" in shown

    @pytest.mark.parametrize("triggered", OCCASIONS)
    @pytest.mark.parametrize("is_open", [False, None])
    def test_closed_it_asks_nothing(self, house, requests, triggered, is_open):
        values = {**SEND, send_command.FORM.dialog: is_open}
        assert self.looked(house, requests, send_command.FORM, triggered, values) == ([], None)

    def test_opening_the_dialog_previews_its_fields(self, house, requests):
        values = {**SEND, send_command.FORM.dialog: False}
        triggered = f"{send_command.KIND}.value"
        paths, _ = self.looked(house, requests, send_command.FORM, triggered, values)
        assert paths == [f"/api/v1/runs/{RUN}/commands/preview"]
