"""The client of a user: paths, queries, pages of the audit log."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest
from pydantic import SecretStr

from dashboard.client import Collector
from dashboard.client.http import MAY_HAVE_SUCCEEDED
from dashboard.errors import CollectorUnavailableError, SignInRequiredError
from dashboard.visitor import Visitor, visited_by
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import (
    AuditAction,
    AuditEntry,
    AuditPage,
    AuditReason,
    CommandCreate,
    ControlUpdate,
    RunQuery,
    RunSort,
    SeriesQuery,
    SilenceCreate,
)
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import (
    CommandPreviewRequest,
    HeatmapQuery,
    HeatmapStatistic,
    Overview,
)

ADA = Visitor(name="ada", token=SecretStr("t" * 43))
ODD = ["a/b", "a b", "..", ".", "a?b#c", "a%2Fb", "gr\u00fcn", "a\nb", "a;b=c", "'\"<&>"]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Recorder:
    """Returns the same response to every request, and records the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else httpx.Response(200, json=answer)

    @property
    def path(self):
        return self.requests[-1].url.raw_path.decode().partition("?")[0]

    @property
    def params(self):
        return self.requests[-1].url.params.multi_items()


def asking(recorder, act, visitor=ADA):
    """Let something ask a collector that answers as the recorder does."""

    async def scenario():
        collector = Collector("http://collector", transport=httpx.MockTransport(recorder))
        try:
            return await act(collector.for_visitor(visitor))
        finally:
            await collector.close()

    return asyncio.run(scenario())


class TestPaths:
    @pytest.mark.parametrize("run_id", ODD)
    def test_an_odd_id_stays_one_part_of_the_path(self, run_id):
        recorder = Recorder([])
        asking(recorder, lambda client: client.series(run_id))
        assert httpx.URL(f"http://h{recorder.path}").path == f"/api/v1/runs/{run_id}/series"
        assert recorder.path.count("/") == 5
        assert "/." not in recorder.path  # which anybody on the way might take for another folder

    @pytest.mark.parametrize("name", ODD)
    def test_so_do_ids_of_commands_and_silences(self, name):
        recorder = Recorder([])
        with pytest.raises(CollectorUnavailableError):  # a list is no command
            asking(recorder, lambda client: client.approve(name, "because"))
        assert httpx.URL(f"http://h{recorder.path}").path == f"/api/v1/commands/{name}/approve"
        asking(recorder, lambda client: client.end_silence(name, "done & dusted"))
        assert httpx.URL(f"http://h{recorder.path}").path == f"/api/v1/silences/{name}"
        assert recorder.params == [("reason", "done & dusted")]


class TestQueries:
    def overview_params(self, **query):
        recorder = Recorder(Overview(rows=(), total=0).model_dump(mode="json"))
        asking(recorder, lambda client: client.overview(RunQuery(**query)))
        return recorder.params

    def test_what_was_not_chosen_is_left_to_the_collector(self):
        assert self.overview_params() == []
        assert self.overview_params(states=(), cursor=None) == []

    def test_what_was_chosen_is_sent(self):
        found = self.overview_params(
            name="a&b=c",
            states=(RunState.RUNNING, RunState.LOST),
            sort=RunSort.NAME,
            descending=False,
            limit=500,
        )
        assert sorted(found) == [
            ("descending", "false"),
            ("limit", "500"),
            ("name", "a&b=c"),
            ("sort", "name"),
            ("states", "lost"),
            ("states", "running"),
        ]

    def test_series_with_odd_labels_are_sent_whole(self):
        recorder = Recorder([])
        series = ('loss{source="a,b"}', 'x{head="\u00e9 & +"}')
        query = SeriesQuery(series=series, attempt=2, from_step=0, to_step=9, max_points=400)
        asking(recorder, lambda client: client.data("r", query))
        assert [value for name, value in recorder.params if name == "series"] == list(series)
        assert dict(recorder.params) | {"series": ""} == {
            "series": "",
            "attempt": "2",
            "from_step": "0",
            "to_step": "9",
            "max_points": "400",
        }

    def test_a_heatmap_s_statistic_is_sent_as_its_name(self):
        query = HeatmapQuery(
            metric="activation_rms", kind="o_proj", statistic=HeatmapStatistic.LAST
        )
        recorder = Recorder({})
        with pytest.raises(CollectorUnavailableError):
            asking(recorder, lambda client: client.heatmap("r", query))
        assert recorder.params == [
            ("metric", "activation_rms"),
            ("kind", "o_proj"),
            ("statistic", "last"),
        ]


class TestAnswers:
    def test_nan_and_inf_are_data(self):
        data = {
            "series": "loss",
            "attempt": 1,
            "steps": [1, 2, 3],
            "times": [1.0, 2.0, 3.0],
            "values": ["NaN", "Infinity", "-Infinity"],
            "num_samples": 3,
            "num_nonfinite": 3,
        }
        query = SeriesQuery(series=("loss",))
        (found,) = asking(Recorder([data]), lambda client: client.data("r", query))
        assert [str(value) for value in found.values] == ["nan", "inf", "-inf"]

    def test_unexpected_run_is_rejected_with_the_address(self):
        with pytest.raises(CollectorUnavailableError, match="http://collector"):
            asking(Recorder({"id": "r"}), lambda client: client.run("r"))


class TestVisitors:
    def test_anonymous_requests_are_rejected(self):
        recorder = Recorder([])
        with pytest.raises(SignInRequiredError):
            asking(recorder, lambda client: client.series("r"), visitor=None)
        assert recorder.requests == []

    def test_it_is_asked_in_the_name_of_whoever_made_the_present_request(self):
        recorder = Recorder([])

        async def scenario():
            collector = Collector("http://c", transport=httpx.MockTransport(recorder))
            for name in ("ada", "grace"):
                with visited_by(Visitor(name=name)):
                    await collector.for_request().series("r")
            with pytest.raises(SignInRequiredError):
                await collector.for_request().series("r")
            await collector.close()

        asyncio.run(scenario())
        names = [request.headers["x-stabilizer-actor"] for request in recorder.requests]
        assert names == ["ada", "grace"]

    def test_every_action_sends_a_reason(self):
        recorder = Recorder({})
        for deed in ("approve", "reject", "cancel"):
            with pytest.raises(CollectorUnavailableError):
                asking(recorder, lambda client, deed=deed: getattr(client, deed)("c", "my reason"))
            assert json.loads(recorder.requests[-1].content) == {"reason": "my reason"}


class AuditLog:
    """A log of so many entries, shown page by page as the collector shows it."""

    def __init__(self, num_entries):
        self.num_entries = num_entries

    def __call__(self, request):
        after, limit = (int(request.url.params[name]) for name in ("after", "limit"))
        ids = range(after + 1, min(after + limit, self.num_entries) + 1)
        is_last = ids.stop > self.num_entries
        page = AuditPage(
            entries=tuple(self.entry(number) for number in ids),
            next_after=None if is_last else ids.stop - 1,
        )
        return httpx.Response(200, content=page.model_dump_json())

    def entry(self, number):
        return AuditEntry(
            id=number,
            at=NOW,
            run_id="r",
            actor="policy",
            action=AuditAction.DECISION_MADE,
            subject="i",
            reason=AuditReason.CARRIED_OUT,
            message="",
            before=None,
            after=None,
        )


class TestAudit:
    @pytest.mark.parametrize(
        ("num_entries", "num_requests"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (4999, 5)]
    )
    def test_all_pages_are_read_oldest_first(self, num_entries, num_requests):
        recorder = Recorder(AuditLog(num_entries))
        entries = asking(recorder, lambda client: client.audit("r"))
        assert [entry.id for entry in entries] == list(range(1, num_entries + 1))
        assert len(recorder.requests) == num_requests

    def test_of_a_longer_one_the_newest_entries_are_kept(self):
        entries = asking(Recorder(AuditLog(6500)), lambda client: client.audit("r"))
        assert [entries[0].id, entries[-1].id] == [1501, 6500]
        assert len({entry.id for entry in entries}) == len(entries)

    @pytest.mark.parametrize(
        ("run_id", "path"), [("r", "/api/v1/runs/r/audit"), (None, "/api/v1/audit")]
    )
    def test_of_one_run_or_of_all(self, run_id, path):
        recorder = Recorder(AuditLog(1))
        asking(recorder, lambda client: client.audit(run_id))
        assert recorder.path == path


class TestLostAnswers:
    def said(self, act):
        def lose(request):
            raise httpx.ReadTimeout("slow", request=request)

        with pytest.raises(CollectorUnavailableError) as caught:
            asking(Recorder(lose), act)
        return caught.value.message

    @pytest.mark.parametrize(
        "action",
        [
            lambda c: c.send_command("r", CommandCreate(parameters={"kind": "pause"}, reason="x")),
            lambda c: c.approve("c", "x"),
            lambda c: c.reject("c", "x"),
            lambda c: c.cancel("c", "x"),
            lambda c: c.set_mode("r", Mode.AUTO, "x"),
            lambda c: c.set_control(ControlUpdate(disarmed=True, reason="x")),
            lambda c: c.silence(SilenceCreate(rule="r", until=NOW, reason="x")),
            lambda c: c.end_silence("s", "x"),
        ],
        ids=["send", "approve", "reject", "cancel", "mode", "control", "silence", "end"],
    )
    def test_an_action_without_an_answer_may_have_been_done(self, action):
        assert MAY_HAVE_SUCCEEDED in self.said(action)

    @pytest.mark.parametrize(
        "question",
        [
            lambda c: c.control(),
            lambda c: c.preview_of("c"),
            lambda c: c.preview("r", CommandPreviewRequest(parameters={"kind": "pause"})),
        ],
        ids=["control", "preview_of", "preview"],
    )
    def test_a_question_does_nothing(self, question):
        assert MAY_HAVE_SUCCEEDED not in self.said(question)
