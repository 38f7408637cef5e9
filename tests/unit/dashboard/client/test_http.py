"""One request: what goes out, and what every kind of answer means."""

import asyncio
import gzip
from urllib.parse import parse_qsl

import httpx
import pytest
from pydantic import SecretStr, TypeAdapter

from dashboard.client.http import MAY_HAVE_SUCCEEDED, read, send, send_change
from dashboard.errors import (
    CollectorRefusedError,
    CollectorUnavailableError,
    DashboardError,
    MissingError,
    SignInRequiredError,
)
from dashboard.visitor import Visitor
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import CommandCreate, ControlState
from stabilizer.protocol.runs import RunUpdate

URL = "http://collector:8000"
ADA = Visitor(name="ada lovelace", token=SecretStr("t" * 43))
CONTROL = TypeAdapter(ControlState)


def ask(answer, method="GET", path="/control", visitor=ADA, *, base_url=URL, how=send, **given):
    """Make a request; returns what came back, and the requests that were made."""
    requests = []

    def respond(request):
        requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def scenario():
        transport = httpx.MockTransport(respond)
        async with httpx.AsyncClient(base_url=base_url, transport=transport) as http:
            try:
                return await how(http, method, path, visitor, **given)
            except DashboardError as error:
                return error

    return asyncio.run(scenario()), requests


def problem(status, code="some_code", detail="it is not so", **members):
    document = {"title": "x", "status": status, "code": code, "detail": detail, **members}
    return httpx.Response(status, json=document)


class TestRequest:
    def request(self, **given):
        _, (request,) = ask(httpx.Response(200, content=b"{}"), **given)
        return request

    def test_it_says_who_asks_and_with_which_token(self):
        request = self.request()
        assert request.headers["x-stabilizer-actor"] == "ada lovelace"
        assert request.headers["authorization"] == f"Bearer {'t' * 43}"

    def test_without_a_token_none_is_sent(self):
        assert "authorization" not in self.request(visitor=Visitor(name="ada")).headers

    def test_without_a_visitor_nothing_is_sent(self):
        error, requests = ask(httpx.Response(200), visitor=None)
        assert isinstance(error, SignInRequiredError)
        assert requests == []

    @pytest.mark.parametrize("base_url", ["http://h", "http://h/", "https://[::1]:8443/deep/down"])
    def test_a_collector_may_live_below_a_path(self, base_url):
        request = self.request(base_url=base_url)
        assert str(request.url) == f"{base_url.rstrip('/')}/api/v1/control"

    def test_parameters_are_written_as_the_collector_reads_them(self):
        params = {
            "yes": True,
            "no": False,
            "none": None,
            "many": ["a b", 'loss{source="x&y"}', "\u00e9"],
            "empty": "",
            "number": 0,
        }
        query = self.request(params=params).url.query.decode("ascii")
        assert parse_qsl(query, keep_blank_values=True) == [
            ("yes", "true"),
            ("no", "false"),
            ("many", "a b"),
            ("many", 'loss{source="x&y"}'),
            ("many", "\u00e9"),
            ("empty", ""),
            ("number", "0"),
        ]

    def test_a_body_is_json_without_what_was_not_said(self):
        command = CommandCreate(parameters={"kind": "reduce_lr", "factor": 0.5}, reason="gr\u00fcn")
        request = self.request(method="POST", path="/runs/a/commands", body=command)
        assert request.headers["content-type"] == "application/json"
        assert request.content.decode() == (
            '{"parameters":{"kind":"reduce_lr","factor":0.5,"ramp_steps":0},"reason":"gr\u00fcn"}'
        )

    def test_without_a_body_no_type_is_claimed(self):
        assert "content-type" not in self.request(method="DELETE").headers


class TestGood:
    @pytest.mark.parametrize("status", [200, 201, 204])
    def test_the_body_comes_back(self, status):
        content, _ = ask(httpx.Response(status, content=b"abc"))
        assert content == b"abc"


class TestRefusals:
    def test_401_asks_for_signing_in(self):
        error, _ = ask(problem(401, "unauthenticated", "there is no token"))
        assert isinstance(error, SignInRequiredError)
        assert error.message == "there is no token"

    def test_404_is_missing_with_its_code(self):
        error, _ = ask(problem(404, "unknown_run", "there is no run 'x'"))
        assert isinstance(error, MissingError)
        assert (error.code, error.message) == ("unknown_run", "there is no run 'x'")

    @pytest.mark.parametrize("status", [400, 403, 405, 409, 413, 415, 421, 422, 426])
    def test_other_refusals_keep_code_and_status(self, status):
        error, _ = ask(problem(status, "command_settled", "it is settled"))
        assert isinstance(error, CollectorRefusedError)
        assert (error.code, error.status) == ("command_settled", status)
        assert error.message == "it is settled"

    def test_a_refusal_names_each_field(self):
        errors = [
            {"field": "until", "value": None, "allowed": "a time zone"},
            {"field": "rule", "value": "", "allowed": "at least 1 character", "line": 3},
        ]
        error, _ = ask(problem(422, "invalid_input", "2 field(s) cannot be used", errors=errors))
        assert error.message == (
            "2 field(s) cannot be used; until: a time zone; rule: at least 1 character"
        )

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_a_collector_that_cannot_work_is_away(self, status):
        error, _ = ask(problem(status, "storage_unavailable", "the database is gone"))
        assert isinstance(error, CollectorUnavailableError)
        assert "the database is gone" in error.message

    def test_members_of_a_later_version_are_no_hindrance(self):
        error, _ = ask(problem(409, trace_id="abc", instance="/x"))
        assert isinstance(error, CollectorRefusedError)


class TestStrangers:
    @pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 409, 500, 502, 503])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"<html>Sign in to your proxy</html>",
            b'{"detail": "Not Found"}',
            b"[]",
            b"\xff\x00",
        ],
        ids=["nothing", "HTML", "other JSON", "a list", "not text"],
    )
    def test_a_refusal_without_a_reason_is_not_of_a_collector(self, status, content):
        headers = {"location": "https://login.example"}
        error, requests = ask(httpx.Response(status, content=content, headers=headers))
        assert isinstance(error, CollectorUnavailableError)
        assert error.url == f"{URL}/"
        assert str(status) in error.message
        assert len(requests) == 1  # no redirect is followed with a token

    @pytest.mark.parametrize(
        "failure",
        [
            httpx.ConnectError("refused"),
            httpx.ConnectTimeout("nobody"),
            httpx.ReadTimeout("slow"),
            httpx.WriteTimeout("slow"),
            httpx.PoolTimeout("too many"),
            httpx.ReadError("reset"),
            httpx.RemoteProtocolError("not http"),
            httpx.ProxyError("proxy"),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_connection_error_names_address_and_kind(self, failure):
        error, _ = ask(failure)
        assert isinstance(error, CollectorUnavailableError)
        assert URL in error.message
        assert type(failure).__name__ in error.message
        assert error.url == URL

    def test_undecodable_body_is_no_response(self):
        broken = httpx.Response(
            200,
            headers={"content-encoding": "gzip"},
            stream=httpx.ByteStream(gzip.compress(b"{}")[:-6] + b"xxxxxx"),
        )
        error, _ = ask(broken)
        assert isinstance(error, CollectorUnavailableError)


class TestChanges:
    """After a lost response the request may have succeeded, and the error says so."""

    def failed(self, failure, how=send_change):
        error, requests = ask(failure, method="POST", path="/runs/a/commands", how=how)
        assert isinstance(error, CollectorUnavailableError)
        assert error.url == URL
        assert len(requests) == 1  # it is not sent again by itself
        return error.message

    @pytest.mark.parametrize(
        "failure",
        [
            httpx.ReadTimeout("slow"),
            httpx.WriteTimeout("slow"),
            httpx.ReadError("reset"),
            httpx.RemoteProtocolError("closed without an answer"),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_lost_response_may_have_succeeded(self, failure):
        said = self.failed(failure)
        assert f"is not responding ({type(failure).__name__}). {MAY_HAVE_SUCCEEDED}" in said
        assert MAY_HAVE_SUCCEEDED not in self.failed(failure, how=send)

    @pytest.mark.parametrize(
        "failure",
        [httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.PoolTimeout("no")],
        ids=lambda failure: type(failure).__name__,
    )
    def test_unsent_request_has_not_succeeded(self, failure):
        assert MAY_HAVE_SUCCEEDED not in self.failed(failure)

    @pytest.mark.parametrize("status", [409, 422, 500, 503])
    def test_rejected_request_has_not_succeeded(self, status):
        error, _ = ask(problem(status), method="POST", how=send_change)
        assert MAY_HAVE_SUCCEEDED not in error.message

    def test_successful_response_is_returned(self):
        assert ask(httpx.Response(201, content=b"abc"), "POST", how=send_change)[0] == b"abc"

    def test_without_a_visitor_nothing_is_sent(self):
        error, requests = ask(httpx.Response(200), "POST", visitor=None, how=send_change)
        assert isinstance(error, SignInRequiredError)
        assert requests == []


class TestRead:
    good = ControlState(disarmed=True, reason="r", actor="person:a", changed_at=None)

    def test_response_is_parsed(self):
        content = self.good.model_dump_json().encode()
        assert read(CONTROL, content, URL) == self.good

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"null",
            b"[]",
            b"<html></html>",
            b"\xff",
            b'{"disarmed": true}',
            good.model_dump_json().replace("}", ',"colour":1}').encode(),
            good.model_dump_json().replace("true", '"maybe"').encode(),
        ],
    )
    def test_unexpected_response_is_of_another_version(self, content):
        with pytest.raises(CollectorUnavailableError, match="same version") as caught:
            read(CONTROL, content, URL)
        assert caught.value.url == URL


def test_change_of_mode_follows_the_protocol():
    update = RunUpdate(mode=Mode.AUTO, reason="quiet night")
    _, (request,) = ask(httpx.Response(200), method="PATCH", path="/runs/a", body=update)
    assert RunUpdate.model_validate_json(request.content) == update
