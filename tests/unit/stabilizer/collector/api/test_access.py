"""Access control: tokens, Host, Origin, and the name of the actor."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stabilizer.collector.api.access import ApiGuard, parse_actor
from stabilizer.errors import InvalidInputError
from stabilizer.settings import CollectorSettings

TOKEN, OTHER = "t" * 43, "o" * 43
LOOPBACK = "http://127.0.0.1:8000"


def client_of(base_url=LOOPBACK, **given):
    app = FastAPI()
    for path in ("/healthz", "/metrics", "/docs-like"):
        app.get(path)(lambda: "in")
    app.get("/api/v1/runs")(lambda: "in")
    app.post("/api/v1/runs")(lambda: "in")
    app.add_middleware(ApiGuard, settings=CollectorSettings(**given))
    return TestClient(app, base_url=base_url)


def bearer(token, scheme="Bearer"):
    return {"authorization": f"{scheme} {token}"}


class TestTokens:
    @pytest.mark.parametrize("token", [TOKEN, OTHER])
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_every_token_of_the_settings_lets_in(self, token, scheme):
        client = client_of(tokens=(TOKEN, OTHER))
        assert client.get("/api/v1/runs", headers=bearer(token, scheme)).text == '"in"'

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            bearer("w" * 43),
            bearer(TOKEN[:-1]),
            bearer(TOKEN + "t"),
            bearer(""),
            bearer(TOKEN, "Basic"),
            {"authorization": TOKEN},
            {"authorization": b"Bearer \xff\xfe"},
        ],
        ids=["none", "wrong", "short", "long", "empty", "basic", "bare", "not ascii"],
    )
    def test_anything_else_does_not(self, headers):
        answer = client_of(tokens=(TOKEN, OTHER)).get("/api/v1/runs", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text

    @pytest.mark.parametrize("path", ["/healthz", "/metrics"])
    def test_probes_and_scrapers_need_none(self, path):
        assert client_of(tokens=(TOKEN,)).get(path).status_code == 200

    def test_paths_nobody_thought_of_are_closed(self):
        client = client_of(tokens=(TOKEN,))
        assert client.get("/docs-like").status_code == 401
        assert client.get("/healthz/").status_code == 401

    def test_on_loopback_without_tokens_nobody_is_asked(self):
        assert client_of().get("/api/v1/runs").status_code == 200

    def test_on_loopback_with_tokens_everybody_is(self):
        assert client_of(tokens=(TOKEN,)).post("/api/v1/runs").status_code == 401


class TestHost:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:8000", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8000", "[::1]"]
    )
    def test_names_of_this_machine_pass(self, host):
        assert client_of().get("/api/v1/runs", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost:x", "::1:1"],
    )
    @pytest.mark.parametrize("path", ["/api/v1/runs", "/metrics"])
    def test_names_of_others_do_not(self, host, path):
        answer = client_of().get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed")

    def test_a_name_of_the_settings_passes(self):
        client = client_of(allowed_hosts="collector.example, other.example")
        assert client.get("/metrics", headers={"host": "Collector.Example"}).status_code == 200
        assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 421

    def test_beyond_loopback_every_name_passes_unless_some_are_named(self):
        open_host = client_of(host="0.0.0.0", tokens=(TOKEN,), base_url="http://c.example")
        named = client_of(
            host="0.0.0.0",
            tokens=(TOKEN,),
            allowed_hosts=("d.example",),
            base_url="http://c.example",
        )
        assert open_host.get("/metrics").status_code == 200
        assert named.get("/metrics").status_code == 421

    @pytest.mark.parametrize("header", ["x-forwarded-host", "forwarded", "x-forwarded-server"])
    def test_headers_of_proxies_neither_admit_nor_refuse(self, header):
        forged = {"host": "evil.example", header: "host=localhost"}
        assert client_of().get("/api/v1/runs", headers=forged).status_code == 421
        proxied = {"host": "localhost", header: "evil.example"}
        assert client_of().get("/api/v1/runs", headers=proxied).status_code == 200


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "https://evil.example"},
            {"origin": "http://127.0.0.1.evil.example"},
            {"origin": "null"},
            {"origin": ""},
            {"origin": "http://[::1"},
            {"sec-fetch-site": "cross-site"},
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_their_pages_are_refused(self, method, headers):
        answer = client_of().request(method, "/api/v1/runs", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://localhost:8050", "sec-fetch-site": "same-site"},
            {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
            {"origin": "http://[::1]:8050"},
            {"sec-fetch-site": "none"},
        ],
    )
    def test_pages_of_this_machine_are_not(self, headers):
        assert client_of().post("/api/v1/runs", headers=headers).status_code == 200

    def test_a_token_is_proof_enough(self):
        headers = {**bearer(TOKEN), "origin": "https://dashboard.example"}
        assert client_of(tokens=(TOKEN,)).post("/api/v1/runs", headers=headers).status_code == 200

    def test_a_page_elsewhere_may_not_probe_with_options(self):
        answer = client_of().options("/api/v1/runs", headers={"origin": "https://evil.example"})
        assert answer.status_code == 403


class TestActor:
    def test_without_a_header_it_is_the_api(self):
        assert parse_actor(None) == "person:api"

    @pytest.mark.parametrize("name", ["ada", "ada@example.org", "Ada L. King", "policy", "x" * 100])
    def test_a_name_is_a_person_whatever_it_is(self, name):
        assert parse_actor(name) == f"person:{name}"

    @pytest.mark.parametrize("name", ["", " ada", "x" * 101, "a\nb", "a\x00", "<b>", "\u00e9lodie"])
    def test_what_is_not_a_name_is_refused(self, name):
        with pytest.raises(InvalidInputError) as caught:
            parse_actor(name)
        assert caught.value.field == "X-Stabilizer-Actor"
