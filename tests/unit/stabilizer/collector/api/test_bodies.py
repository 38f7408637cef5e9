"""Bodies: bounded however they are sent, of a known kind, JSON by the letter."""

import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel

from stabilizer.collector.api import bodies
from stabilizer.collector.api.bodies import JSON, BoundedRoute, check_content_type, parse_message


class Note(BaseModel):
    text: str
    number: float = 0.0


@pytest.fixture(autouse=True)
def routes(app, monkeypatch):
    monkeypatch.setattr(bodies, "SMALL_BODY_BYTES", 1024)
    monkeypatch.setattr(bodies.BoundedRequest, "max_body_bytes", 1024)
    router = APIRouter(prefix="/v1", route_class=BoundedRoute)

    @router.post("/small")
    def small(note: Note):
        return note

    @router.post("/raw")
    async def raw(request: Request):
        kind = check_content_type(request, JSON, "application/x-raw")
        return {"kind": kind, "size": len(await request.body())}

    @router.post("/parsed")
    async def parsed(request: Request):
        return parse_message(await request.body(), Note)

    app.include_router(router)


def pieces(total, size=100):
    """Send without a length: chunked."""
    for start in range(0, total, size):
        yield b" " * min(size, total - start)


class TestLimit:
    @pytest.mark.parametrize("extra", [0, 1])
    def test_the_limit_is_sharp_for_a_known_length(self, client, extra):
        body = b"x" * (4096 + extra)
        answer = client.post("/v1/raw", content=body, headers={"content-type": JSON})
        assert answer.status_code == (413 if extra else 200)

    def test_an_announced_length_is_refused_before_the_body_is_read(self, client):
        answer = client.post(
            "/v1/raw", content=b"{}", headers={"content-type": JSON, "content-length": "99999"}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert "99999 bytes announced; allowed: at most 4096 bytes" in answer.json()["detail"]

    def test_a_chunked_body_is_refused_when_it_grows_too_large(self, client):
        answer = client.post("/v1/raw", content=pieces(5000), headers={"content-type": JSON})
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    def test_messages_have_the_small_limit(self, client):
        answer = client.post("/v1/small", json={"text": "x" * 2000})
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert "at most 1024 bytes" in answer.json()["detail"]

    def test_a_wrong_length_header_does_not_confuse(self, client):
        answer = client.post(
            "/v1/raw", content=b"{}", headers={"content-type": JSON, "content-length": "-5"}
        )
        assert answer.json()["size"] == 2


class TestContentType:
    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"]
    )
    @pytest.mark.parametrize("path", ["/v1/small", "/v1/raw"])
    def test_unknown_kinds_are_refused_with_the_known_ones(self, client, path, kind):
        answer = client.post(path, content=b'{"text": "a"}', headers={"content-type": kind})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert JSON in answer.headers["accept"]

    def test_none_at_all_is_refused(self, client):
        assert client.post("/v1/small", content=b'{"text": "a"}').status_code == 415

    def test_parameters_and_case_do_not_matter(self, client):
        kind = {"content-type": "Application/JSON; charset=utf-8"}
        answer = client.post("/v1/small", content=b'{"text": "a"}', headers=kind)
        assert answer.json() == {"text": "a", "number": 0.0}


class TestJson:
    @pytest.mark.parametrize("path", ["/v1/small", "/v1/parsed"])
    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b'{"text": "a",}', b"\xff", b'{"text": "a"} x', b"[" * 1020],
        ids=["empty", "open", "comma", "not utf-8", "more behind", "open arrays"],
    )
    def test_what_is_not_json_is_400(self, client, path, body):
        answer = client.post(path, content=body, headers={"content-type": JSON})
        if path == "/v1/small" and not body:
            assert answer.status_code == 422  # a missing body is reported as a field
        else:
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")

    @pytest.mark.parametrize("path", ["/v1/small", "/v1/parsed"])
    @pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
    def test_numbers_that_json_lacks_are_400_with_the_way_out(self, client, path, word):
        body = f'{{"text": "a", "number": {word}}}'
        answer = client.post(path, content=body, headers={"content-type": JSON})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
        assert '"nan"' in answer.json()["detail"]

    @pytest.mark.parametrize("path", ["/v1/small", "/v1/parsed"])
    def test_json_with_unusable_fields_is_422(self, client, path):
        answer = client.post(path, json={"number": "many"})
        assert answer.status_code == 422
        assert {error["field"] for error in answer.json()["errors"]} == {"text", "number"}

    @pytest.mark.parametrize("path", ["/v1/small", "/v1/parsed"])
    def test_json_of_another_shape_is_422(self, client, path):
        answer = client.post(path, json=[1, 2])
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")
