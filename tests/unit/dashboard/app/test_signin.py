"""Sign-in and sign-out: form, errors and cookie."""

import asyncio
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dashboard.app.access import COOKIE, MAX_BODY_BYTES, PageGuard
from dashboard.app.sessions import Sessions
from dashboard.app.signin import build_router
from dashboard.client import Collector
from dashboard.settings import load_dashboard_settings

TOKEN = "t" * 43
BEYOND = {"host": "0.0.0.0"}
CONTROL = {"disarmed": False, "reason": "", "actor": "", "changed_at": None, "silences": []}
ODD = '<script>alert("1")</script>&\''


def refuse(status, code, detail):
    problem = {"title": "x", "status": status, "code": code, "detail": detail}
    return httpx.Response(status, json=problem)


def ask_for_the_token(request):
    """Answer as a collector that was started with TOKEN."""
    assert request.url.path == "/api/v1/control"
    if request.headers.get("authorization") == f"Bearer {TOKEN}":
        return httpx.Response(200, json=CONTROL)
    return refuse(401, "unauthenticated", "the token is not one of ours")


class Page(HTMLParser):
    """What a browser makes of a page: its fields, its alert, and its tags."""

    def __init__(self, text):
        super().__init__()
        self.fields, self.tags, self.alert, self.address = {}, [], "", ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self._inside = "alert" if given.get("role") == "alert" else tag
        if tag == "input":
            self.fields[given["name"]] = given.get("value", "")

    def handle_data(self, data):
        if self._inside == "alert":
            self.alert += data
        if self._inside == "code" and not self.address:
            self.address = data

    def handle_endtag(self, tag):
        self._inside = ""


class House:
    """The sign-in page in front of an app that requires a session."""

    def __init__(self, clock, answer, **given):
        settings = load_dashboard_settings(**given)
        self.sessions = Sessions(clock, settings.session_hours)
        collector = Collector(settings.collector_url, transport=httpx.MockTransport(answer))
        app = FastAPI()
        app.include_router(build_router(settings, self.sessions, collector))
        app.get("/runs")(lambda: "in")
        app.add_middleware(PageGuard, settings=settings, sessions=self.sessions)
        self.client = TestClient(app, base_url="https://127.0.0.1", follow_redirects=False)

    def sign_in(self, **fields):
        return self.client.post("/signin", data={"name": "ada", "token": TOKEN, **fields})

    def page(self, **params):
        return Page(self.client.get("/signin", params=params).text)

    def is_in(self):
        return self.client.get("/runs", headers={"accept": "text/html"}).status_code == 200


@pytest.fixture
def make_house(clock):
    return lambda answer=ask_for_the_token, **given: House(clock, answer, **{**BEYOND, **given})


@pytest.fixture
def house(make_house):
    return make_house()


class TestGood:
    def test_valid_token_signs_in_and_redirects(self, house):
        assert not house.is_in()
        answer = house.sign_in(next="/runs/abc?from=10")
        assert (answer.status_code, answer.headers["location"]) == (303, "/runs/abc?from=10")
        assert house.is_in()
        visitor = house.sessions.visitor(answer.cookies[COOKIE])
        assert (visitor.name, visitor.token.get_secret_value()) == ("ada", TOKEN)

    @pytest.mark.parametrize("is_secure", [True, False])
    def test_cookie_holds_a_session_id_only(self, make_house, is_secure):
        answer = make_house(secure_cookies=is_secure, session_hours=2).sign_in()
        cookie, *flags = answer.headers["set-cookie"].split("; ")
        assert cookie.startswith(f"{COOKIE}=")
        assert TOKEN not in answer.headers["set-cookie"]
        expected = {"HttpOnly", "Max-Age=7200", "Path=/", "SameSite=lax"}
        assert set(flags) == expected | ({"Secure"} if is_secure else set())

    def test_second_sign_in_ends_the_first(self, house):
        first = house.sign_in().cookies[COOKIE]
        second = house.sign_in(name="grace").cookies[COOKIE]
        assert house.sessions.visitor(first) is None
        assert house.sessions.visitor(second).name == "grace"

    def test_name_and_token_are_stripped(self, house):
        answer = house.sign_in(name="  ada lovelace ", token=f" {TOKEN}\r\n")
        assert house.sessions.visitor(answer.cookies[COOKIE]).name == "ada lovelace"

    def test_name_suffices_on_loopback_without_tokens(self, make_house):
        house = make_house(lambda _: httpx.Response(200, json=CONTROL), host="127.0.0.1")
        answer = house.sign_in(token="")
        visitor = house.sessions.visitor(answer.cookies[COOKIE])
        assert (visitor.name, visitor.token) == ("ada", None)

    def test_page_names_the_collector_and_is_not_cached(self, make_house):
        house = make_house(collector_url="http://collector.example:8000")
        answer = house.client.get("/signin")
        page = Page(answer.text)
        assert page.address == "http://collector.example:8000"
        assert (page.alert, page.fields["next"], page.fields["token"]) == ("", "/", "")
        assert answer.headers["cache-control"] == "no-store"

    @pytest.mark.parametrize("ended", ["true", "1", "sure"])
    def test_expired_session_shows_a_notice(self, house, ended):
        assert "Your session has expired" in house.page(ended=ended, next="/control").alert


class TestRefused:
    @pytest.mark.parametrize("token", ["w" * 43, "", "with\nnewline", "gr\u00fcn" * 10, "\x00"])
    def test_wrong_token_is_rejected(self, house, token):
        answer = house.sign_in(token=token)
        assert answer.status_code == 403
        assert "token" in Page(answer.text).alert
        assert "set-cookie" not in answer.headers
        assert not house.is_in()

    @pytest.mark.parametrize(
        "name", ["", "  ", "-ada", "a\nb", "g\u00fcnther", "a/b", "x" * 101, ODD]
    )
    def test_invalid_name_is_rejected(self, house, name):
        answer = house.sign_in(name=name)
        assert answer.status_code == 403
        assert Page(answer.text).alert.startswith("Enter a name")
        assert not house.is_in()

    def test_form_keeps_its_fields_except_the_token(self, house):
        answer = house.sign_in(name="ada", token="w" * 43, next="/control")
        page = Page(answer.text)
        assert page.fields == {"next": "/control", "name": "ada", "token": ""}
        assert "www" not in answer.text

    def test_failed_sign_in_keeps_the_session(self, house):
        session = house.sign_in().cookies[COOKIE]
        house.sign_in(name="grace", token="w" * 43)
        assert house.sessions.visitor(session).name == "ada"

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, text="<html>welcome</html>"),
            httpx.Response(200, json={"disarmed": "no"}),
            httpx.Response(302, headers={"location": "https://login.example"}),
            httpx.Response(401, text="<html>who are you?</html>"),
            httpx.Response(502, text="bad gateway"),
            refuse(404, "path_not_found", "there is nothing at this path"),
            refuse(421, "host_not_allowed", "host is 'collector'"),
            refuse(403, "cross_origin", "a page of another site"),
            refuse(503, "storage_unavailable", "the database is gone"),
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("too slow"),
        ],
        ids=lambda answer: getattr(answer, "status_code", type(answer).__name__),
    )
    def test_sign_in_fails_without_a_working_collector(self, make_house, answer):
        def respond(_):
            if isinstance(answer, Exception):
                raise answer
            return answer

        house = make_house(respond)
        found = house.sign_in()
        assert found.status_code == 403
        assert Page(found.text).alert.startswith("Cannot sign in: ")
        assert not house.is_in()

    @pytest.mark.parametrize("token", [TOKEN, ""])
    def test_open_collector_disables_sign_in_beyond_loopback(self, make_house, token):
        house = make_house(lambda _: httpx.Response(200, json=CONTROL))
        answer = house.sign_in(token=token)
        assert answer.status_code == 403
        assert "Start the collector with a token" in Page(answer.text).alert
        assert not house.is_in()


class TestForm:
    def post(self, house, body, kind="application/x-www-form-urlencoded"):
        return house.client.post("/signin", content=body, headers={"content-type": kind})

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff\xfe\x00",
            b"name",
            b"name=%FF%FE&token=%",
            b"&&&;;;===",
            b'{"name": "ada"}',
            b"name=ada&token=" + b"w" * 20_000,
            b"&".join(b"f%d=1" % number for number in range(1000)),
        ],
        ids=lambda body: repr(body[:20]),
    )
    def test_malformed_form_shows_an_error(self, house, body):
        answer = self.post(house, body)
        assert answer.status_code == 403
        assert Page(answer.text).alert

    @pytest.mark.parametrize(("size", "status"), [(100_000, 403), (10_000_000, 413)])
    def test_of_a_huge_one_only_the_beginning_is_read(self, house, size, status):
        sent = 0

        async def body():
            nonlocal sent
            while sent < size:
                sent += 1000
                yield b"a" * 1000

        async def scenario():
            transport = httpx.ASGITransport(house.client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.post("/signin", content=body())

        assert asyncio.run(scenario()).status_code == status
        assert sent <= MAX_BODY_BYTES + 1000

    def test_aborted_request_is_ignored(self, house):
        messages = [{"type": "http.request", "body": b"name=a", "more_body": True}]
        sent = []

        async def receive():
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/signin",
            "raw_path": b"/signin",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
        }
        asyncio.run(house.client.app(scope, receive, send))
        assert {message.get("status", 403) for message in sent} <= {403}
        assert not house.is_in()

    def test_of_a_field_given_twice_the_last_counts(self, house):
        body = f"name=mallory&name=ada&token=x&token={TOKEN}".encode()
        assert self.post(house, body).status_code == 303

    def test_cross_site_sign_in_is_blocked(self, house):
        answer = house.client.post(
            "/signin",
            data={"name": "mallory", "token": TOKEN},
            headers={"origin": "https://evil.example"},
        )
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


class TestOddText:
    @pytest.mark.parametrize("target", [f"/runs/{ODD}", f'/"onfocus="{ODD}', "/$next$$name"])
    def test_in_the_way_back_it_is_text(self, house, target):
        plain = house.page()
        page = house.page(next=target)
        assert page.fields["next"] == target
        assert page.tags == plain.tags

    def test_in_the_name_it_is_text(self, house):
        page = Page(house.sign_in(name=ODD).text)
        assert page.fields["name"] == ODD
        assert "script" not in page.tags

    def test_in_the_address_of_the_collector_it_is_text(self, make_house):
        page = make_house(collector_url="http://c/<i>&amp;").page()
        assert page.address == "http://c/<i>&amp;"

    def test_in_what_the_collector_says_it_is_text(self, make_house):
        page = Page(make_house(lambda _: refuse(409, "x", ODD)).sign_in().text)
        assert ODD in page.alert
        assert "script" not in page.tags

    @pytest.mark.parametrize(
        "target",
        ["//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nSet-Cookie: x=y"],
    )
    def test_a_way_back_that_leads_elsewhere_leads_to_the_list(self, house, target):
        assert house.page(next=target).fields["next"] == "/"
        answer = house.sign_in(next=target)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "x" not in answer.cookies

    def test_a_way_back_in_other_letters_is_quoted(self, house):
        answer = house.sign_in(next="/runs?search=gr\u00fcn")
        assert answer.headers["location"] == "/runs?search=gr%C3%BCn"


class TestOut:
    def test_signing_out_ends_the_session_here_and_in_the_browser(self, house):
        session = house.sign_in().cookies[COOKIE]
        answer = house.client.post("/signout")
        assert (answer.status_code, answer.headers["location"]) == (303, "/signin")
        assert house.client.cookies.get(COOKIE) is None
        assert house.sessions.visitor(session) is None
        assert not house.is_in()

    def test_twice_is_harmless_and_others_stay(self, house):
        other = house.sessions.begin("grace", None)
        for _ in range(2):
            assert house.client.post("/signout").status_code == 303
        assert house.sessions.visitor(other) is not None

    def test_on_loopback_it_leads_back_to_the_runs(self, make_house):
        answer = make_house(host="127.0.0.1").client.post("/signout")
        assert answer.headers["location"] == "/"

    def test_cross_site_sign_out_is_blocked(self, house):
        session = house.sign_in().cookies[COOKIE]
        assert house.client.get("/signout").status_code == 405
        evil = {"origin": "https://evil.example"}
        assert house.client.post("/signout", headers=evil).status_code == 403
        assert house.sessions.visitor(session) is not None
