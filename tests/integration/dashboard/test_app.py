"""The whole dashboard over HTTP and its WebSocket, in front of a real collector."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dashboard import ids
from dashboard.app.access import COOKIE
from dashboard.app.factory import create_app
from dashboard.settings import load_dashboard_settings

TOKEN = "t" * 43
PAGE = {"accept": "text/html"}
BEYOND = {"host": "0.0.0.0", "allowed_hosts": "dash.example"}


class House:
    """A dashboard, as a browser reaches it."""

    def __init__(self, collector, clock, **given):
        settings = load_dashboard_settings(collector_url=collector.url, person="ada", **given)
        self.origin = "http://dash.example" if settings.must_sign_in else "http://127.0.0.1:8050"
        self.client = TestClient(
            create_app(settings, clock), base_url=self.origin, follow_redirects=False
        )

    def __enter__(self):
        self.client.__enter__()
        self.callbacks = self.client.get("/_dash-dependencies").json()
        return self

    def __exit__(self, *given):
        self.client.__exit__(*given)

    def sign_in(self, name="grace", token=TOKEN):
        return self.client.post("/signin", data={"name": name, "token": token})

    def call(self, output, **values):
        """Do what a page does to fill something; values are those of the ids in question."""
        (callback,) = [each for each in self.callbacks if f"..{output}." in each["output"]]

        def properties(kind):
            # No component of this page matches the pattern yet.
            return [
                [] if each["id"].startswith("{") else {**each, "value": values.get(each["id"])}
                for each in callback[kind]
            ]

        names = [name.rsplit(".", 1) for name in callback["output"].strip(".").split("...")]
        outputs = [
            [] if name[0].startswith("{") else dict(zip(("id", "property"), name, strict=True))
            for name in names
        ]
        message = {
            "output": callback["output"],
            "outputs": outputs if len(outputs) > 1 else outputs[0],
            "inputs": properties("inputs"),
            "state": properties("state"),
            "changedPropIds": [],
        }
        return self.client.post("/_dash-update-component", json=message)

    def text_of(self, output, **values):
        answer = self.call(output, **values)
        assert answer.status_code == 200, answer.text
        return json.dumps(answer.json(), ensure_ascii=False)

    def story_of(self, run_id):
        given = {ids.RUN_ID: run_id, ids.URL: "/runs/x", ids.TIMELINE_LIMIT: 40}
        return self.text_of(ids.RUN_HEADER, **given)


@pytest.fixture
def open_house(clock):
    """Open dashboards, each at a collector."""
    opened = []

    def start(collector, **given):
        opened.append(House(collector, clock, **given).__enter__())
        return opened[-1]

    yield start
    for house in opened:
        house.__exit__(None, None, None)


@pytest.fixture(scope="module")
def guarded(start_collector):
    return start_collector(tokens=(TOKEN,))


class TestPages:
    @pytest.mark.parametrize("path", ["/", "/control", "/runs/abc", "/nowhere", "/runs/a%2Fb"])
    def test_every_path_brings_the_shell_with_style_and_scripts(self, collector, open_house, path):
        answer = open_house(collector).client.get(path, headers=PAGE)
        assert answer.status_code == 200
        assert "<title>Stabilizer</title>" in answer.text
        assert "/assets/app.css" in answer.text
        assert answer.headers["x-frame-options"] == "DENY"

    def test_the_frame_names_who_is_there(self, collector, open_house):
        layout = open_house(collector).client.get("/_dash-layout").text
        assert '"ada"' in layout
        assert all(f'"{name}"' in layout for name in (ids.URL, ids.LIVE_LINK, ids.BANNER))

    def test_nothing_is_loaded_from_elsewhere(self, collector, open_house):
        page = open_house(collector).client.get("/", headers=PAGE).text
        assert "https://" not in page
        assert "//cdn" not in page

    def test_it_says_that_it_lives_without_asking_the_collector(self, start_collector, open_house):
        collector = start_collector()
        house = open_house(collector)
        collector.stop()
        assert house.client.get("/healthz").json() == {"status": "ok"}

    def test_two_in_one_process_keep_to_their_own_collector(
        self, collector, start_collector, make_job, open_house
    ):
        other = start_collector()
        make_job(other, name="only-there")
        houses = open_house(collector), open_house(other)
        found = ["only-there" in house.text_of(ids.RUNS_BODY) for house in houses]
        assert found == [False, True]


class TestWhatIsShown:
    def test_runs_and_one_of_them(self, start_collector, make_job, open_house):
        collector = start_collector()
        job = make_job(collector, name="night shift <b>")
        job.break_down()
        house = open_house(collector)
        assert "night shift <b>" in house.text_of(ids.RUNS_BODY)  # React escapes it
        story = house.story_of(job.run_id)
        assert "night shift <b>" in story
        assert ids.APPROVE in story

    def test_unknown_run_shows_an_error_page(self, collector, open_house):
        story = open_house(collector).story_of("a/b")
        assert "Run not found" in story
        assert '"href":"/"' in story.replace(" ", "")

    def test_page_recovers_from_an_unavailable_collector(
        self, start_collector, make_job, open_house
    ):
        collector = start_collector()
        make_job(collector, name="patient")
        house = open_house(collector)
        collector.stop()
        assert "Collector not responding" in house.text_of(ids.RUNS_BODY)
        collector.start()
        assert "patient" in house.text_of(ids.RUNS_BODY)


class TestBeyondLoopback:
    @pytest.fixture
    def house(self, guarded, open_house):
        return open_house(guarded, **BEYOND)

    def test_sign_in_redirects_to_the_requested_page(self, house):
        wanted = house.client.get("/control?x=1", headers=PAGE)
        assert wanted.status_code == 303
        target = parse_qs(urlsplit(wanted.headers["location"]).query)["next"][0]
        form = house.client.get(wanted.headers["location"], headers=PAGE)
        assert 'value="/control?x=1"' in form.text
        data = {"name": "grace", "token": TOKEN, "next": target}
        answer = house.client.post("/signin", data=data)
        assert (answer.status_code, answer.headers["location"]) == (303, "/control?x=1")
        assert house.client.get("/control", headers=PAGE).status_code == 200
        assert '"grace"' in house.client.get("/_dash-layout").text

    def test_callbacks_need_a_session(self, house, guarded, make_job):
        job = make_job(guarded, token=TOKEN, name="secret run")
        for text in (house.text_of(ids.RUNS_BODY), house.story_of(job.run_id)):
            assert "secret run" not in text
            assert "/signin" in text
        house.sign_in()
        assert "secret run" in house.text_of(ids.RUNS_BODY)
        house.client.post("/signout")
        assert "secret run" not in house.text_of(ids.RUNS_BODY)

    @pytest.mark.parametrize("token", ["w" * 43, ""])
    def test_wrong_token_is_rejected(self, house, token):
        answer = house.sign_in(token=token)
        assert answer.status_code == 403
        assert "rejected this token" in answer.text
        assert COOKIE not in house.client.cookies

    def test_an_ended_session_is_asked_to_sign_in_again(self, house, clock):
        house.sign_in()
        clock.advance(12 * 3600)
        assert "/signin?ended=true" in house.text_of(ids.RUNS_BODY)
        assert house.client.get("/", headers=PAGE).status_code == 303

    def test_open_collector_disables_sign_in(self, collector, open_house):
        answer = open_house(collector, **BEYOND).sign_in(token="")
        assert answer.status_code == 403
        assert "Start the collector with a token" in answer.text

    def test_sign_in_fails_while_the_collector_is_unavailable(self, start_collector, open_house):
        collector = start_collector(tokens=(TOKEN,))
        house = open_house(collector, **BEYOND)
        collector.stop()
        answer = house.sign_in()
        assert answer.status_code == 403
        assert collector.url in answer.text
        collector.start()
        assert house.sign_in().status_code == 303


class Tab:
    """The end of Dash's WebSocket in a browser: shows a path, holds what it is given."""

    def __init__(self, socket, callbacks, path):
        self.socket, self.path, self.holds = socket, path, {}
        (callback,) = [each for each in callbacks if each.get("websocket")]
        payload = {"output": callback["output"], "outputs": [], "inputs": [], "changedPropIds": []}
        self.say(type="callback_request", requestId="1", payload=payload)

    def say(self, **message):
        self.socket.send_json({"rendererId": "tab", **message})

    def until(self, name, **expected):
        """Take messages until a store holds what is expected; return what it holds."""
        while not expected.items() <= self.holds.get(name, {}).items():
            messages = json.loads(self.socket.receive_text())
            for message in messages if isinstance(messages, list) else [messages]:
                self._take(message)
        return self.holds[name]

    def _take(self, message):
        payload = message.get("payload") or {}
        if message["type"] == "get_props_request":
            answer = {"pathname": self.path}
            self.say(type="get_props_response", requestId=message["requestId"], payload=answer)
        elif message["type"].startswith("set_props"):
            for each in payload if isinstance(payload, list) else [payload]:
                store = each["componentId"].removesuffix("-incoming")
                self.holds[store] = each["props"]["data"]


class TestUpdates:
    def connect(self, house, **headers):
        given = {"origin": house.origin, **headers}
        url = f"ws://{urlsplit(house.origin).netloc}/_dash-ws-callback"
        return house.client.websocket_connect(url, headers=given)

    def test_page_gets_updates_and_the_end_of_its_session(self, guarded, make_job, open_house):
        job = make_job(guarded, token=TOKEN)
        job.report([1])
        house = open_house(guarded, **BEYOND)
        house.sign_in()
        with self.connect(house) as socket:
            tab = Tab(socket, house.callbacks, f"/runs/{job.run_id}")
            tab.until(ids.LIVE_LINK, link="live")
            before = tab.until(ids.LIVE_FRAMES, run_id=job.run_id)
            job.report([2, 3])
            after = tab.until(ids.LIVE_FRAMES, step=3)
            house.client.post("/signout")
            last = tab.until(ids.LIVE_LINK, link="signed_out")
        assert after["count"] > before["count"]
        assert last["since"] is None

    def test_anonymous_page_gets_signed_out_only(self, guarded, open_house):
        house = open_house(guarded, **BEYOND)
        with self.connect(house) as socket:
            tab = Tab(socket, house.callbacks, "/")
            tab.until(ids.LIVE_LINK, link="signed_out")
            assert tab.until(ids.LIVE_BEAT, last=True)["at"]
        assert set(tab.holds) == {ids.LIVE_LINK, ids.LIVE_BEAT}

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "http://evil.example", "host": "evil.example"},
            {"origin": "null"},
            {"origin": ""},
            {"sec-fetch-site": "cross-site"},
        ],
        ids=str,
    )
    def test_pages_of_other_sites_are_rejected(self, collector, open_house, headers):
        house = open_house(collector)
        with pytest.raises(WebSocketDisconnect), self.connect(house, **headers):
            pytest.fail("it was let in")
