"""Who may come in: the Host header, pages of other sites, sessions, WebSockets."""

import asyncio
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.websockets import WebSocketDisconnect

from dashboard.app.access import COOKIE, MAX_BODY_BYTES, PageGuard, local_path, read_ahead
from dashboard.app.sessions import Sessions
from dashboard.settings import load_dashboard_settings
from dashboard.visitor import current_visitor

TOKEN = "t" * 43
LOOPBACK = "http://127.0.0.1:8050"
BEYOND = {"host": "0.0.0.0"}
PAGE = {"accept": "text/html,application/xhtml+xml"}


class House:
    """An app behind the guard that returns its visitor."""

    def __init__(self, clock, base_url=LOOPBACK, **given):
        self.settings = load_dashboard_settings(person="ada", **given)
        self.sessions = Sessions(clock, self.settings.session_hours)
        self.num_ended, self.bodies = 0, []
        app = FastAPI()
        app.add_api_websocket_route("/live", self.live)
        for method in ("get", "head", "post", "put", "patch", "delete", "options"):
            getattr(app, method)("/{path:path}")(self.answer)
        app.add_middleware(PageGuard, settings=self.settings, sessions=self.sessions)
        self.client = TestClient(app, base_url=base_url, follow_redirects=False)

    async def answer(self, request: Request):
        self.bodies.append(await request.body())
        return await self.who()

    async def who(self):
        visitor = current_visitor()
        return None if visitor is None else {"name": visitor.name, "session": visitor.session}

    async def live(self, socket: WebSocket):
        await socket.accept()
        await socket.send_json(await self.who())
        async for message in socket.iter_text():
            await socket.send_text(message)
        self.num_ended += 1

    def get(self, path="/", **headers):
        return self.client.get(
            path, headers={name.replace("_", "-"): h for name, h in headers.items()}
        )

    def post(self, **headers):
        return self.client.post(
            "/", headers={name.replace("_", "-"): h for name, h in headers.items()}
        )

    def open(self, **headers):
        """Open a WebSocket."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.websocket_connect(f"ws://{LOOPBACK[7:]}/live", headers=named)

    def connect(self, **headers):
        """Open a WebSocket; return its first message, or the close code."""
        try:
            with self.open(**headers) as socket:
                return socket.receive_json()
        except WebSocketDisconnect as refused:
            return refused.code


@pytest.fixture
def make_house(clock):
    return lambda *args, **given: House(clock, *args, **given)


@pytest.fixture
def house(make_house):
    return make_house()


class TestHost:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1:8050", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8050", "a.localhost"],
    )
    def test_names_of_this_machine_pass(self, house, host):
        assert house.get(host=host).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example:8050",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1:8050",
            "",
            "127.0.0.1:8050:1",
            "127.0.0.1:80x",
            "user@127.0.0.1",
            "[::1",
            "::1",
        ],
    )
    def test_a_site_that_points_its_name_at_this_machine_does_not(self, house, host):
        for answer in (
            house.get(host=host),
            house.post(host=host),
            house.get("/assets/a", host=host),
        ):
            assert answer.status_code == 421
            assert "allowed_hosts" in answer.text
        assert house.connect(host=host, origin=f"http://{host}") == 4403

    def test_further_names_are_taken_from_the_settings(self, make_house):
        house = make_house(allowed_hosts="Dash.Example")
        assert house.get(host="dash.example").status_code == 200
        assert house.get(host="DASH.EXAMPLE:443").status_code == 200
        assert house.get(host="other.example").status_code == 421

    def test_beyond_loopback_every_name_passes_unless_some_are_listed(self, make_house):
        assert make_house(**BEYOND).get(host="dash.example").status_code == 200
        strict = make_house(**BEYOND, allowed_hosts="dash.example")
        assert strict.get(host="dash.example").status_code == 200
        assert strict.get(host="evil.example").status_code == 421
        assert strict.get("/healthz", host="127.0.0.1:8050").status_code == 200  # a container's own

    def test_what_a_stranger_sends_is_shown_short(self, house):
        assert len(house.get(host="e" * 5000).text) < 500


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "http://127.0.0.1:9999"},
            {"origin": "http://localhost:8050"},
            {"origin": "null"},
            {"origin": ""},
            {"origin": "http://[::1"},
            {"origin": "http://127.0.0.1:8050.evil.example"},
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"origin": LOOPBACK, "sec_fetch_site": "cross-site"},
        ],
        ids=str,
    )
    def test_their_pages_change_nothing_and_hear_nothing(self, house, headers):
        assert house.post(**headers).status_code == 403
        assert house.connect(**headers, host=LOOPBACK[7:]) == 4403

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_no_method_that_changes_something_is_forgotten(self, house, method):
        answer = house.client.request(method, "/", headers={"origin": "http://evil.example"})
        assert answer.status_code == 403

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"origin": LOOPBACK},
            {"origin": LOOPBACK.upper()},
            {"origin": LOOPBACK, "sec_fetch_site": "same-origin"},
            {"sec_fetch_site": "none"},
        ],
        ids=str,
    )
    def test_our_own_pages_and_scripts_do(self, house, headers):
        assert house.post(**headers).json() == {"name": "ada", "session": None}
        assert house.connect(**headers, host=LOOPBACK[7:]) == {"name": "ada", "session": None}

    def test_a_link_on_another_site_leads_here(self, house):
        answer = house.get(sec_fetch_site="cross-site", sec_fetch_mode="navigate", **PAGE)
        assert answer.status_code == 200

    def test_own_pages_are_accepted_behind_a_tls_proxy(self, make_house):
        house = make_house(allowed_hosts="dash.example")
        headers = {"host": "dash.example", "origin": "https://dash.example"}
        assert house.post(**headers).status_code == 200


class TestSessions:
    @pytest.fixture
    def beyond(self, make_house):
        return make_house(**BEYOND)

    @pytest.fixture
    def signed_in(self, beyond):
        session = beyond.sessions.begin("grace", SecretStr(TOKEN))
        beyond.client.cookies.set(COOKIE, session)
        return session

    def test_visitor_on_loopback_comes_from_the_settings(self, house):
        assert house.get().json() == {"name": "ada", "session": None}

    def test_on_loopback_who_signed_in_is_who_signed_in(self, house):
        session = house.sessions.begin("grace", SecretStr(TOKEN))
        house.client.cookies.set(COOKIE, session)
        assert house.get().json() == {"name": "grace", "session": session}

    def test_visitor_beyond_loopback_comes_from_the_session(self, beyond, signed_in):
        assert beyond.get(**PAGE).json() == {"name": "grace", "session": signed_in}
        assert beyond.post().json()["name"] == "grace"
        assert beyond.connect(cookie=f"{COOKIE}={signed_in}")["name"] == "grace"

    @pytest.mark.parametrize(
        "cookie",
        [
            "theme=dark; {}",
            'other={{"a": [1, 2]}}; {}',
            "a[b]=c; {}; d",
            "=x;; {};",
            "\u00e9=1; {}",
        ],
    )
    def test_cookies_of_other_sites_on_this_machine_are_no_hindrance(self, beyond, cookie):
        session = beyond.sessions.begin("grace", SecretStr(TOKEN))
        sent = cookie.format(f"{COOKIE}={session}")
        assert beyond.get(cookie=sent.encode("latin-1")).json()["name"] == "grace"

    @pytest.mark.parametrize("cookie", ["", "x", f"{COOKIE}=", f"{COOKIE}=made-up", f"{COOKIE}"])
    def test_who_has_none_gets_no_name(self, beyond, cookie):
        assert beyond.post(cookie=cookie).json() is None
        assert beyond.connect(cookie=cookie) is None

    def test_its_end_ends_it(self, beyond, signed_in, clock):
        clock.advance(12 * 3600)
        assert beyond.get(**PAGE).status_code == 303
        assert beyond.post().json() is None


class TestWebSocketOfAnother:
    """A browser's tabs share one WebSocket, with the cookie of its beginning."""

    ASKS = '{"type":"callback_request","rendererId":"tab"}'
    OTHERS = ('{"type":"heartbeat"}', '{"type":"get_props_response","payload":{}}', "", "[")

    @pytest.fixture
    def beyond(self, make_house):
        return make_house(**BEYOND)

    def sign_in(self, house, name="grace"):
        """Sign in, and come back with the cookie; returns it."""
        cookie = f"{COOKIE}={house.sessions.begin(name, SecretStr(TOKEN))}"
        assert house.get(cookie=cookie).json()["name"] == name
        return cookie

    def is_heard(self, socket, message=ASKS):
        socket.send_text(message)
        return socket.receive_text() == message

    def code_of_end(self, house, socket):
        socket.send_text(self.ASKS)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        return closed.value.code

    def test_of_who_is_still_there_every_message_passes(self, beyond):
        with beyond.open(cookie=self.sign_in(beyond)) as socket:
            assert socket.receive_json()["name"] == "grace"
            self.sign_in(beyond, "ada")  # in another browser
            assert all(self.is_heard(socket, message) for message in (self.ASKS, *self.OTHERS))

    @pytest.mark.parametrize("ends", ["by its time", "by signing out", "by signing in anew"])
    def test_of_a_session_that_has_ended_the_next_page_gets_another(self, beyond, clock, ends):
        cookie = self.sign_in(beyond)
        with beyond.open(cookie=cookie) as socket:
            socket.receive_json()
            if ends == "by its time":
                clock.advance(12 * 3600)
            else:
                beyond.sessions.end(cookie.partition("=")[2])
            if ends == "by signing in anew":
                self.sign_in(beyond)
            assert all(self.is_heard(socket, message) for message in self.OTHERS)
            assert self.code_of_end(beyond, socket) == 4401
        assert beyond.num_ended == 1  # the app received the disconnect

    def test_anonymous_socket_stays_open_until_a_sign_in(self, beyond):
        with beyond.open() as socket:
            assert socket.receive_json() is None
            assert all(self.is_heard(socket) for _ in range(3))
            session = beyond.sessions.begin("grace", SecretStr(TOKEN))
            assert self.is_heard(socket)  # the browser may not have the cookie yet
            assert beyond.get(cookie=f"{COOKIE}={session}").json()["name"] == "grace"
            assert self.code_of_end(beyond, socket) == 4401

    def test_next_anonymous_socket_is_not_closed_again(self, beyond):
        cookie = self.sign_in(beyond)
        with beyond.open() as socket:
            assert socket.receive_json() is None
            beyond.get(cookie=cookie)
            assert self.is_heard(socket)

    def test_on_loopback_signing_in_and_out_is_noticed_as_well(self, house):
        with house.open(host=LOOPBACK[7:]) as socket:
            assert socket.receive_json()["name"] == "ada"
            assert self.is_heard(socket)
            cookie = self.sign_in(house)
            assert self.code_of_end(house, socket) == 4401
        with house.open(host=LOOPBACK[7:], cookie=cookie) as socket:
            assert socket.receive_json()["name"] == "grace"
            house.sessions.end(cookie.partition("=")[2])
            assert self.code_of_end(house, socket) == 4401


class TestToSignIn:
    @pytest.fixture
    def beyond(self, make_house):
        return make_house(**BEYOND)

    def next_of(self, answer):
        assert answer.status_code == 303
        parts = urlsplit(answer.headers["location"])
        assert (parts.scheme, parts.netloc, parts.path) == ("", "", "/signin")
        (target,) = parse_qs(parts.query)["next"]
        return target

    @pytest.mark.parametrize(
        "path",
        ["/", "/runs/abc", "/runs/abc?from=10&to=20", "/runs/a%2Fb%3Fc", "/runs/100%25?x=%C3%A9"],
    )
    def test_page_redirects_to_sign_in_and_back(self, beyond, path):
        target = self.next_of(beyond.get(path, **PAGE))
        assert target == path
        assert local_path(target) == path

    def test_scripts_of_a_page_are_not_led_there(self, beyond):
        assert beyond.get("/_dash-layout", accept="application/json").json() is None
        assert beyond.get("/").json() is None

    @pytest.mark.parametrize(
        "path",
        ["/signin", "/signout", "/healthz", "/favicon.ico", "/assets/a.css", "/_favicon.ico?v=1"],
    )
    def test_some_paths_are_open(self, beyond, path):
        assert beyond.get(path, **PAGE).status_code == 200

    @pytest.mark.parametrize("path", ["/signin/", "/signinx", "/assetsx", "/healthz/", "/control"])
    def test_those_beside_them_are_not(self, beyond, path):
        assert self.next_of(beyond.get(path, **PAGE)) == path

    def test_lookalike_address_stays_on_this_site(self, beyond):
        answer = beyond.client.get(LOOPBACK + "//evil.example/x", headers=PAGE)
        assert local_path(self.next_of(answer)) == "/"


class TestLocalPath:
    @pytest.mark.parametrize(
        "target",
        ["/", "/runs/abc", "/runs/a%2Fb?x=1#top", "/control?next=//x", "/gr\u00fcn", "/a b"],
    )
    def test_our_own_pass(self, target):
        assert local_path(target) == target

    @pytest.mark.parametrize(
        "target",
        [
            "",
            "runs",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "/a\r\nSet-Cookie: a=b",
            "/\x00",
            "\t//evil.example",
            " //evil.example",
            "https://evil.example",
            "HTTPS:evil.example",
            "javascript:alert(1)",
            "data:text/html,x",
            "?next=/",
            "/\u2028/x",
            "/\ud800",
        ],
    )
    def test_all_others_lead_to_the_list_of_runs(self, target):
        assert local_path(target) == "/"


class TestBodies:
    @pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
    @pytest.mark.parametrize("given", [{}, BEYOND], ids=["signed in", "nobody"])
    def test_one_beyond_the_limit_is_refused_before_anything_reads_it(
        self, make_house, method, given
    ):
        house = make_house(**given)
        for content in (b"x" * (MAX_BODY_BYTES + 1), (b"x" * 2**16 for _ in range(17))):
            answer = house.client.request(method, "/", content=content)
            assert answer.status_code == 413
            assert str(MAX_BODY_BYTES) in answer.text
        assert house.bodies == []

    def test_one_that_is_announced_too_large_is_not_even_begun(self, house):
        answer = house.client.post("/", content=b"", headers={"content-length": "9" * 18})
        assert answer.status_code == 413

    @pytest.mark.parametrize("pieces", [[], [b""], [b"a" * MAX_BODY_BYTES], [b"ab", b"", b"c"]])
    def test_up_to_the_limit_it_arrives_as_it_was_sent(self, house, pieces):
        assert house.client.post("/", content=iter(pieces)).status_code == 200
        assert house.bodies == [b"".join(pieces)]

    def test_disconnect_while_reading_reaches_the_app(self):
        sent = [{"type": "http.request", "body": b"a", "more_body": True}]
        sent += [{"type": "http.disconnect"}] * 2

        async def receive():
            return sent.pop(0)

        async def scenario():
            once_more = await read_ahead({"type": "http", "headers": []}, receive)
            return [await once_more() for _ in range(2)]

        assert asyncio.run(scenario()) == [{"type": "http.disconnect"}] * 2

    def test_after_the_body_the_app_still_hears_when_the_browser_goes(self):
        sent = [{"type": "http.request", "body": b"a"}, {"type": "http.disconnect"}]

        async def receive():
            return sent.pop(0)

        async def scenario():
            once_more = await read_ahead({"type": "http", "headers": []}, receive)
            return [(await once_more())["type"] for _ in range(2)]

        assert asyncio.run(scenario()) == ["http.request", "http.disconnect"]


class TestHeaders:
    def test_no_page_is_shown_in_a_frame_or_guessed_at(self, make_house):
        refused = make_house(**BEYOND).get(**PAGE)
        for answer in (make_house().get(), make_house().get(host="evil.example"), refused):
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
