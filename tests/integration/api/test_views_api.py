"""What pages read of one run: snapshots, markers, metrics, heatmaps."""

import pytest

SERIES = (
    "loss",
    'activation_rms{kind="fc2",layer="0",module="m.0.fc2",tower="language"}',
    'activation_rms{kind="fc2",layer="1",module="m.1.fc2",tower="language"}',
)


@pytest.fixture
def deep(client, make_job):
    """A job that measures modules."""
    job = make_job(client, SERIES)
    job.register(key="deep")
    return job


def snapshot(step, **changes):
    return {"id": f"s{step}", "attempt": 1, "step": step, "finite": True, **changes}


class TestOverview:
    def test_a_row_is_a_run_with_what_a_list_shows_of_it(self, client, job):
        job.send([1, 2], [[3.0, 1.0], [float("nan"), 1.0]])
        found = client.get("/api/v1/overview").json()
        (row,) = found["rows"]
        assert (found["total"], found["next_cursor"]) == (1, None)
        listed = client.get("/api/v1/runs").json()["runs"][0]
        assert row["run"] == listed
        assert row["sparkline"] == {"steps": [1, 2], "values": [3.0, "NaN"]}
        assert (row["phase"], row["last_intervention"]) == (None, None)
        assert (row["incident"]["rules"], row["num_proposed"]) == (["loss_nonfinite"], 1)

    def test_a_run_is_found_by_its_key_and_by_its_id(self, client, job):
        for text in ("JOB-1", job.run_id[:8], "idef"):
            assert client.get("/api/v1/overview", params={"name": text}).json()["total"] == 1
        assert client.get("/api/v1/overview", params={"name": "zzz"}).json()["rows"] == []

    def test_a_cursor_of_another_order_is_refused(self, client, job, refused):
        refused(client.get("/api/v1/overview?cursor=x"), 422, "invalid_input", "cursor")
        refused(client.get("/api/v1/overview?limit=501"), 422, "invalid_input", "limit")


class TestSnapshots:
    def test_the_newest_comes_first_with_the_word_on_its_health(self, client, job):
        held = [snapshot(0), snapshot(10), snapshot(390), snapshot(20, finite=False)]
        job.send(range(1, 400), snapshots=held)
        found = client.get(f"{job.path}/snapshots").json()
        assert [(one["snapshot"]["id"], one["healthy"]) for one in found] == [
            ("s390", False),
            ("s20", False),
            ("s10", True),
            ("s0", True),
        ]

    def test_a_later_attempt_is_newer_than_a_higher_step(self, client, job):
        job.send(range(1, 11), snapshots=[snapshot(10)])
        start = {"from_step": 5, "parent": 1, "reason": "rollback"}
        held = [snapshot(10), snapshot(6, attempt=2)]
        job.attempt, job.sequence = 2, 0
        job.send([6], attempt_start=start, snapshots=held)
        found = client.get(f"{job.path}/snapshots").json()
        assert [one["snapshot"]["id"] for one in found] == ["s6", "s10"]

    def test_looking_writes_nothing(self, client, job):
        before = client.get(f"{job.path}/audit").json()
        assert client.get(f"{job.path}/snapshots").json() == []
        assert client.get(f"{job.path}/audit").json() == before


def test_markers_are_listed_oldest_first(client, job, clock):
    job.send([1], markers=[{"kind": "phase_change", "step": 1, "text": "warm-up"}])
    clock.advance(60)
    job.send([2], markers=[{"kind": "lr_change", "step": 2}])
    first, second = client.get(f"{job.path}/markers").json()
    assert (first["kind"], first["text"], first["step"]) == ("phase_change", "warm-up", 1)
    assert (second["kind"], second["attempt"]) == ("lr_change", 1)
    assert second["at"] > first["at"]


def test_a_heatmap_shows_nan_as_a_string_and_what_was_not_measured_as_null(client, deep):
    deep.send([1, 2], [[1.0, float("nan"), 2.0], [1.0, 3.0, float("-inf")]])
    other = {"step": 3, "values": {SERIES[1]: 1.5}}
    assert deep.send_json(frames=[other]).status_code == 200
    query = {"metric": "activation_rms", "statistic": "last"}
    found = client.get(f"{deep.path}/heatmap", params=query).json()
    assert found["values"] == [["NaN", 3.0, 1.5], [2.0, "-Infinity", None]]
    assert found["nonfinite"] == [[1, 0, 0], [0, 1, 0]]
    assert found["columns"][0] == {"first_step": 1, "last_step": 1}
    assert [row["layer"] for row in found["rows"]] == [0, 1]


def test_metrics_are_listed_with_their_choices(client, deep):
    loss, rms = client.get(f"{deep.path}/metrics").json()
    assert (loss["metric"], loss["has_modules"]) == ("loss", False)
    assert (rms["kinds"], rms["towers"], rms["num_series"]) == (["fc2"], ["language"], 2)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"max_columns": 3}, ["max_columns"]),
        ({"max_columns": 2001}, ["max_columns"]),
        ({"statistic": "median"}, ["statistic"]),
        ({"attempt": 0, "from_step": -1}, ["attempt", "from_step"]),
        ({"layer": 3}, ["layer"]),
    ],
)
def test_a_heatmap_asked_wrongly_names_every_field(client, deep, refused, changes, fields):
    query = {"metric": "activation_rms", **changes}
    refused(client.get(f"{deep.path}/heatmap", params=query), 422, "invalid_input", *fields)


@pytest.mark.parametrize("what", ["snapshots", "markers", "metrics", "heatmap?metric=loss"])
def test_of_an_unknown_or_deleted_run_there_is_nothing(client, job, refused, what):
    refused(client.get(f"/api/v1/runs/unknown/{what}"), 404, "unknown_run")
    client.post(f"{job.path}/heartbeat", json={"attempt": 1, "step": 0, "state": "failed"})
    client.delete(job.path, params={"reason": "old"})
    refused(client.get(f"{job.path}/{what}"), 404, "unknown_run")


def test_an_unknown_metric_is_named(client, job, refused):
    answer = client.get(f"{job.path}/heatmap", params={"metric": "activation_rms"})
    assert "activation_rms" in refused(answer, 404, "unknown_metric")["detail"]
