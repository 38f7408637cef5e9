"""Every request of the client to a real collector."""

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from dashboard.client import Collector, CollectorApi
from dashboard.errors import (
    CollectorRefusedError,
    CollectorUnavailableError,
    MissingError,
    SignInRequiredError,
)
from dashboard.visitor import Visitor
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import (
    CommandCreate,
    ControlUpdate,
    RunQuery,
    RunSort,
    SeriesQuery,
    SilenceCreate,
)
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import CommandPreviewRequest, HeatmapQuery

TOKEN = "t" * 43
PAUSE = CommandCreate(parameters={"kind": "pause"}, reason="let me look")


class TestWhatThereIs:
    def test_runs_as_rows_of_a_list(self, start_collector, make_job, ask):
        collector = start_collector()
        broken, other = make_job(collector), make_job(collector, name="other", key="k")
        broken.break_down()
        other.end()
        every = RunQuery(states=(RunState.RUNNING, RunState.FINISHED), sort=RunSort.NAME)
        rows = ask(collector, lambda client: client.overview(every)).rows
        assert [row.run.name for row in rows] == ["other", "idefics"]
        assert [row.num_proposed for row in rows] == [0, 1]
        assert rows[1].incident.rules == ("loss_not_finite",)
        one = ask(collector, lambda client: client.overview(RunQuery(name="OTH", limit=1)))
        assert ([row.run.id for row in one.rows], one.total) == ([other.run_id], 1)

    def test_a_run_with_its_attempts(self, collector, job, ask):
        job.report([1, 2])
        run = ask(collector, lambda client: client.run(job.run_id))
        assert (run.name, run.step, run.global_batch) == ("idefics", 2, 64)
        assert [attempt.number for attempt in run.attempts] == [1]

    def test_series_metrics_and_samples(self, collector, job, ask):
        job.report(range(1, 101))
        job.report([101], "-Infinity")

        async def read(client):
            query = SeriesQuery(series=("loss", "grad_norm"), from_step=50, max_points=20)
            return (
                await client.series(job.run_id),
                await client.metrics(job.run_id),
                await client.data(job.run_id, query),
            )

        series, metrics, data = ask(collector, read)
        assert {info.metric for info in series} >= {"loss", "grad_norm", "activation_rms"}
        (found,) = [metric for metric in metrics if metric.metric == "activation_rms"]
        assert (found.kinds, found.towers, found.num_series) == (("o_proj",), ("language",), 2)
        assert [one.series for one in data] == ["loss", "grad_norm"]
        assert (data[0].num_samples, data[0].num_nonfinite) == (52, 1)
        assert len(data[0].steps) <= 20
        assert str(data[0].values[-1]) == "-inf"

    def test_a_heatmap_from_bottom_to_top(self, collector, job, ask):
        job.report(range(1, 41))
        query = HeatmapQuery(metric="activation_rms", kind="o_proj", max_columns=10)
        found = ask(collector, lambda client: client.heatmap(job.run_id, query))
        assert [row.layer for row in found.rows] == [0, 1]
        assert found.values[1] == (4.0,) * len(found.columns)

    def test_rules_with_their_text(self, collector, job, ask):
        rules = ask(collector, lambda client: client.rules(job.run_id))
        assert "loss_not_finite" in rules.text
        assert [rule.name for rule in rules.health] == ["loss_not_finite"]


class TestWhatHappened:
    def test_incidents_alerts_and_log(self, collector, job, ask):
        command = job.break_down()

        async def read(client):
            return (
                await client.incidents(job.run_id),
                await client.alerts(job.run_id),
                await client.audit(job.run_id),
                await client.audit(),
            )

        incidents, alerts, log, whole_log = ask(collector, read)
        assert [alert.incident_id for alert in alerts] == [incidents[0].id]
        assert command["id"] in {entry.subject for entry in log}
        assert [entry.id for entry in log] == sorted(entry.id for entry in log)
        assert [entry for entry in whole_log if entry.run_id == job.run_id] == log

    def test_a_long_log_is_read_page_by_page(self, collector, job, ask):
        modes = ["observe", "propose"] * 6
        for mode in modes:
            change = {"mode": mode, "reason": "back and forth"}
            assert job.http.patch(f"/runs/{job.run_id}", json=change).is_success
        log = ask(collector, lambda client: client.audit(job.run_id))
        changes = [entry.after["mode"] for entry in log if entry.action == "run_mode_changed"]
        assert changes == modes

    def test_markers_and_snapshots(self, collector, job, ask):
        marker = {"kind": "phase_change", "step": 4, "text": "warm-up is over"}
        job.report(range(1, 5), snapshots=[job.snapshot(4)], markers=[marker])
        markers = ask(collector, lambda client: client.markers(job.run_id))
        (state,) = ask(collector, lambda client: client.snapshots(job.run_id))
        assert [(one.step, one.text) for one in markers] == [(4, "warm-up is over")]
        assert (state.snapshot.id, state.healthy) == ("s4", False)
        job.report(range(5, 20), snapshots=[job.snapshot(4)])
        (state,) = ask(collector, lambda client: client.snapshots(job.run_id))
        assert state.healthy


class TestCommands:
    def test_from_a_thought_to_an_order_that_is_taken_back(self, collector, job, ask):
        job.report(range(1, 5))
        thought = CommandPreviewRequest(parameters={"kind": "pause"}, attempt=1)

        async def act(client):
            preview = await client.preview(job.run_id, thought)
            nothing_yet = await client.commands(job.run_id)
            given = await client.send_command(job.run_id, PAUSE)
            found = await client.command(given.id)
            taken_back = await client.cancel(given.id, "not needed")
            return preview, nothing_yet, given, found, taken_back, await client.commands(job.run_id)

        preview, nothing_yet, given, found, taken_back, listed = ask(collector, act)
        assert (preview.step, nothing_yet) == (4, [])
        assert (given.state, given.actor, given.message) == (
            CommandState.PENDING,
            "person:ada",
            "let me look",
        )
        assert found == given
        assert (taken_back.state, listed) == (CommandState.CANCELLED, [taken_back])

    def test_what_was_proposed_is_seen_and_approved(self, collector, job, ask):
        proposed = job.break_down()
        preview = ask(collector, lambda client: client.preview_of(proposed["id"]))
        assert (preview.step, preview.steps_lost, preview.skipped_samples) == (11, 7, 320)
        approved = ask(collector, lambda client: client.approve(proposed["id"], "I agree"))
        assert approved.state is CommandState.PENDING
        (delivered,) = job.report([12], "NaN")["commands"]
        assert delivered["id"] == proposed["id"]

    def test_what_was_proposed_is_rejected_once(self, collector, job, ask):
        proposed = job.break_down()
        rejected = ask(collector, lambda client: client.reject(proposed["id"], "wait for it"))
        assert rejected.state is CommandState.REJECTED
        with pytest.raises(CollectorRefusedError) as caught:
            ask(collector, lambda client: client.approve(proposed["id"], "or not"))
        assert caught.value.status == 409
        assert caught.value.code.startswith("command_")

    def test_an_order_for_an_attempt_that_is_past_is_refused(self, collector, job, ask):
        job.post("/runs", job.registration)
        late = CommandCreate(parameters={"kind": "pause"}, reason="late", attempt=1)
        with pytest.raises(CollectorRefusedError) as caught:
            ask(collector, lambda client: client.send_command(job.run_id, late))
        assert (caught.value.code, caught.value.status) == ("past_attempt", 409)


class TestSwitches:
    def test_the_mode_of_a_run(self, collector, job, ask):
        async def act(client):
            await client.set_mode(job.run_id, Mode.AUTO, "quiet night")
            return await client.run(job.run_id), await client.audit(job.run_id)

        run, log = ask(collector, act)
        assert run.mode is Mode.AUTO
        assert (log[-1].actor, log[-1].message) == ("person:ada", "quiet night")

    def test_the_switch_over_all_runs(self, start_collector, ask):
        collector = start_collector()
        off = ControlUpdate(disarmed=True, reason="maintenance")

        async def act(client):
            before = await client.control()
            return before, await client.set_control(off), await client.control()

        before, changed, after = ask(collector, act)
        assert not before.disarmed
        assert changed == after
        assert (after.disarmed, after.actor, after.reason) == (True, "person:ada", "maintenance")

    def test_a_silence_and_its_end(self, collector, job, ask):
        silence = SilenceCreate(rule="*", run_id=job.run_id, until_step=99, reason="known & old")

        async def act(client):
            made = await client.silence(silence)
            during = (await client.control()).silences
            await client.end_silence(made.id, "fixed & done?")
            return made, during, (await client.control()).silences, await client.audit(job.run_id)

        made, during, after, log = ask(collector, act)
        assert (during, after) == ((made,), ())
        assert (made.actor, made.reason) == ("person:ada", "known & old")
        assert log[-1].message == "fixed & done?"


class TestRefusals:
    @pytest.mark.parametrize(
        "run_id", ["0" * 32, "a/b", "..", ".", "a b", "?", "%2e", "\u00e9", "x\n"]
    )
    def test_a_run_that_does_not_exist_is_missing(self, collector, ask, run_id):
        with pytest.raises(MissingError):
            ask(collector, lambda client: client.run(run_id))
        with pytest.raises(MissingError):
            ask(collector, lambda client: client.send_command(run_id, PAUSE))

    def test_a_run_that_was_deleted_is_missing_and_its_log_stays(self, collector, job, ask):
        job.end()
        job.delete()
        for name in ("run", "series", "metrics", "incidents", "alerts", "markers", "snapshots"):
            with pytest.raises(MissingError) as caught:
                ask(collector, lambda client, name=name: getattr(client, name)(job.run_id))
            assert caught.value.code == "unknown_run"
        log = ask(collector, lambda client: client.audit(job.run_id))
        assert log[-1].action == "run_deleted"

    def test_a_series_that_was_never_measured_is_missing(self, collector, job, ask):
        query = SeriesQuery(series=('nothing{source="a&b"}',))
        with pytest.raises(MissingError) as caught:
            ask(collector, lambda client: client.data(job.run_id, query))
        assert caught.value.code == "unknown_series"

    def test_a_refused_field_is_named(self, collector, job, ask):
        past = SilenceCreate(rule="*", until=collector.clock.now(), reason="too late")
        with pytest.raises(CollectorRefusedError, match="until") as caught:
            ask(collector, lambda client: client.silence(past))
        assert (caught.value.code, caught.value.status) == ("invalid_input", 422)

    def test_a_name_that_the_log_refuses_is_refused(self, collector):
        async def act():
            connections = Collector(collector.url)
            try:
                client = connections.for_visitor(Visitor(name="-"))
                await client.set_control(ControlUpdate(disarmed=True, reason="x"))
            finally:
                await connections.close()

        with pytest.raises(CollectorRefusedError, match="X-Stabilizer-Actor"):
            asyncio.run(act())

    @pytest.mark.parametrize("token", [None, "w" * 43])
    def test_another_token_is_not_taken(self, start_collector, ask, token):
        collector = start_collector(tokens=(TOKEN,))
        with pytest.raises(SignInRequiredError):
            ask(collector, lambda client: client.control(), token and SecretStr(token))
        assert not ask(collector, lambda client: client.control(), SecretStr(TOKEN)).disarmed


class TestAway:
    @pytest.fixture
    def collector(self, start_collector):
        return start_collector()

    def test_collector_goes_away_and_returns(self, collector, job, ask):
        collector.stop()
        with pytest.raises(CollectorUnavailableError, match="ConnectError"):
            ask(collector, lambda client: client.run(job.run_id))
        collector.start()
        assert ask(collector, lambda client: client.run(job.run_id)).name == "idefics"

    def test_one_client_outlives_a_restart(self, collector, job, ask):
        async def act(client):
            before = await client.run(job.run_id)
            await asyncio.to_thread(collector.stop)
            with pytest.raises(CollectorUnavailableError):
                await client.run(job.run_id)
            await asyncio.to_thread(collector.start)
            return before, await client.run(job.run_id)

        before, after = ask(collector, act)
        assert before == after


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_for_the_outside_world_is_not_on_the_way(monkeypatch, collector, ask, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(collector, lambda client: client.control()).silences == ()


def test_every_method_of_the_client_is_tested():
    asked = Path(__file__).read_text(encoding="utf-8")
    methods = [name for name in vars(CollectorApi) if not name.startswith("_")]
    in_the_loop = {"run", "series", "metrics"}
    assert [m for m in methods if f"client.{m}(" not in asked and m not in in_the_loop] == []
