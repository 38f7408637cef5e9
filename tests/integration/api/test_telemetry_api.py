"""Frames, catalogs and signs of life: stored once, refused as a whole, never half."""

import json

import numpy as np
import pytest

from stabilizer.protocol.batches import BatchAnswer, BatchHeader
from stabilizer.protocol.frames import FrameBlock, encode_batch
from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.series import Catalog


def read(job, series, **params):
    answer = job.client.get(f"{job.path}/series/data", params={"series": series, **params})
    assert answer.status_code == 200, answer.text
    return [SeriesData.model_validate(data) for data in answer.json()]


class TestBinary:
    def test_frames_are_stored_and_the_answer_says_up_to_where(self, job):
        answer = job.send([1, 2, 3], [[4.0, 1.0], [3.0, 1.0], [2.0, 1.0]])
        told = BatchAnswer.model_validate_json(answer.content)
        assert (told.attempt, told.accepted_sequence, told.duplicate) == (1, 0, False)
        (data,) = read(job, "loss")
        assert (data.steps, data.values) == ((1, 2, 3), (4.0, 3.0, 2.0))

    def test_the_same_batch_again_is_stored_once(self, job):
        body = job.body([1, 2])
        assert not job.post(body).json()["duplicate"]
        assert job.post(body).json()["duplicate"]
        assert read(job, "loss")[0].num_samples == 2

    def test_nan_and_inf_are_data(self, job):
        job.send([1, 2, 3], [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0]])
        (data,) = read(job, "loss")
        assert np.isnan(data.values[0])
        assert data.values[1:] == (np.inf, -np.inf)
        assert data.num_nonfinite == 3

    def test_an_empty_batch_is_taken(self, job):
        assert job.send([]).status_code == 200

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda body: b"",
            lambda body: body[:-1],
            lambda body: body + b"\x00",
            lambda body: b"STBX" + body[4:],
            lambda body: body[:4] + b"\x09\x00" + body[6:],
            lambda body: body[:6] + b"\x01\x00" + body[8:],
            lambda body: body[:8] + b"\xff\xff\xff\xff" + body[12:],
            lambda body: np.random.default_rng(0).bytes(500),
        ],
        ids=["empty", "cut", "longer", "magic", "version", "flags", "header length", "noise"],
    )
    def test_a_malformed_batch_is_refused_and_nothing_is_stored(self, job, refused, spoil):
        refused(job.post(spoil(job.body([1, 2]))), 422, "malformed_batch")
        assert read(job, "loss") == []
        assert job.send([1, 2]).json()["accepted_sequence"] == 0

    def test_an_unknown_catalog_is_a_conflict_until_it_is_sent(self, job, refused):
        job.catalog = Catalog.of(["z_loss"])
        body = job.body([1])
        refused(job.post(body), 409, "unknown_catalog")
        added = job.client.post(
            f"{job.path}/catalogs", json={"catalogs": [job.catalog.model_dump(mode="json")]}
        )
        assert added.json() == [job.catalog.id]
        assert job.post(body).status_code == 200

    def test_a_width_that_is_not_the_catalogs_is_refused(self, job, refused):
        block = FrameBlock(
            job.catalog.id, np.array([1]), np.array([1.7e9]), np.ones((1, 3), np.float32)
        )
        body = encode_batch(BatchHeader(attempt=1, sequence=0), [block])
        refused(job.post(body), 422, "catalog_mismatch")

    def test_steps_that_descend_are_refused(self, job, refused):
        refused(job.send([5, 4]), 422, "step_out_of_order")

    def test_an_attempt_that_nobody_began_is_a_conflict(self, job, refused):
        refused(job.send([1], attempt=7), 409, "unknown_attempt")

    def test_unknown_fields_of_the_header_are_named(self, job, refused):
        head = json.dumps({"attempt": 1, "sequence": 0, "blocks": [], "colour": 1}).encode()
        body = b"STBF\x01\x00\x00\x00" + len(head).to_bytes(4, "little") + head
        refused(job.post(body), 422, "malformed_batch", "header.colour")

    def test_an_unknown_run_is_404(self, job, refused):
        job.run_id = "nobody"
        refused(job.send([1]), 404, "unknown_run")

    @pytest.mark.parametrize("kind", ["application/octet-stream", "text/plain"])
    def test_an_unknown_kind_is_refused(self, job, refused, kind):
        refused(job.post(job.body([1]), kind), 415, "unsupported_media_type")

    def test_a_body_beyond_the_setting_is_refused(self, job, refused):
        refused(job.post(b"x" * (2**20 + 1)), 413, "body_too_large")

    def test_so_is_one_without_a_length(self, job, refused):
        chunks = (b"x" * 2**16 for _ in range(17))
        refused(job.post(chunks), 413, "body_too_large")

    def test_a_gap_in_the_sequence_is_taken(self, job):
        job.send([1])
        assert job.send([9], sequence=5).json()["accepted_sequence"] == 5


class TestJson:
    def test_series_are_made_from_their_names(self, job):
        frames = [{"step": 1, "values": {"loss": 2.5, 'my_metric{rank="0"}': 7}}]
        assert job.send_json(frames=frames).status_code == 200
        assert read(job, 'my_metric{rank="0"}')[0].values == (7.0,)

    def test_nan_is_written_with_quotes(self, job):
        frames = [{"step": 1, "values": {"loss": "nan"}}, {"step": 2, "values": {"loss": "-inf"}}]
        assert job.send_json(frames=frames).status_code == 200
        (data,) = read(job, "loss")
        assert np.isnan(data.values[0])
        assert data.values[1] == -np.inf

    def test_nan_without_quotes_is_not_json(self, job, refused):
        body = '{"attempt": 1, "sequence": 0, "frames": [{"step": 1, "values": {"loss": NaN}}]}'
        problem = refused(job.post(body, "application/json"), 400, "malformed_json")
        assert '"nan"' in problem["detail"]

    def test_fields_that_cannot_be_used_are_all_named(self, job, refused):
        answer = job.send_json(frames=[{"step": -1, "values": {}}], colour=1)
        refused(answer, 422, "invalid_input", "frames.0.step", "frames.0.values", "colour")

    def test_a_name_that_is_no_series_is_refused(self, job, refused):
        problem = refused(
            job.send_json(frames=[{"step": 1, "values": {"Loss!": 1}}]), 422, "invalid_input"
        )
        assert "Loss!" in problem["detail"]

    @pytest.mark.parametrize(
        "values",
        [{"a" * 121: 1}, {'m{a="1",b="2"}': 1, 'm{b="2",a="1"}': 2}],
        ids=["too long", "twice"],
    )
    def test_why_a_name_is_no_series_is_said_in_words(self, job, refused, values):
        frames = [{"step": 1, "values": values}]
        problem = refused(job.send_json(frames=frames), 422, "invalid_input")
        assert "validation error" not in problem["detail"]

    @pytest.mark.parametrize(
        "change", [{"sequence": 2**63}, {"attempt": 2**31, "attempt_start": {"from_step": 0}}]
    )
    def test_a_number_that_no_column_holds_is_refused(self, job, refused, change):
        frames = [{"step": 1, "values": {"loss": 1}}]
        refused(job.send_json(frames=frames, **change), 422, "invalid_input")
        assert job.client.get(job.path).json()["attempt"] == 1

    def test_the_same_again_is_a_duplicate(self, job):
        frames = [{"step": 1, "values": {"loss": 2.5}}]
        assert not job.send_json(frames=frames).json()["duplicate"]
        assert job.send_json(frames=frames).json()["duplicate"]


class TestCatalogs:
    def test_the_same_catalog_again_changes_nothing(self, job):
        message = {"catalogs": [job.catalog.model_dump(mode="json")]}
        for _ in range(2):
            assert job.client.post(f"{job.path}/catalogs", json=message).json() == [job.catalog.id]

    def test_none_at_all_is_refused(self, job, refused):
        answer = job.client.post(f"{job.path}/catalogs", json={"catalogs": []})
        refused(answer, 422, "invalid_input", "catalogs")


class TestHeartbeat:
    def post(self, job, **changes):
        message = {"attempt": 1, "step": 3, "state": "paused", **changes}
        return job.client.post(f"{job.path}/heartbeat", json=message)

    def test_it_sets_the_state_and_answers_like_frames(self, job):
        told = BatchAnswer.model_validate_json(self.post(job).content)
        assert told.accepted_sequence == -1
        assert job.client.get(job.path).json()["state"] == "paused"

    @pytest.mark.parametrize(
        "change", [{"attempt": 0}, {"step": -1}, {"step": 2**60}, {"state": "asleep"}]
    )
    def test_what_means_nothing_is_refused(self, job, refused, change):
        refused(self.post(job, **change), 422, "invalid_input", *change)

    def test_a_silent_run_is_lost_and_found_again(self, app, job, clock):
        clock.advance(60)
        app.state.sweeper.sweep_once()
        assert job.client.get(job.path).json()["state"] == "lost"
        self.post(job, state="running")
        assert job.client.get(job.path).json()["state"] == "running"


class TestSeries:
    def test_all_series_of_a_run_are_listed(self, job):
        infos = job.client.get(f"{job.path}/series").json()
        assert {info["series"] for info in infos} == {"loss", "grad_norm"}
        assert {info["catalog"] for info in infos} == {job.catalog.id}

    def test_several_series_ranges_and_attempts(self, job):
        job.send(range(1, 11))
        found = read(job, ["loss", "grad_norm"], attempt=1, from_step=3, to_step=5)
        assert {data.series: data.steps for data in found} == {
            "loss": (3, 4, 5),
            "grad_norm": (3, 4, 5),
        }

    def test_a_spike_survives_thinning(self, job):
        values = np.ones((5000, 2))
        values[2500, 0] = 99.0
        job.send(range(1, 5001), values)
        (data,) = read(job, "loss", max_points=100)
        assert len(data.steps) <= 110
        assert 99.0 in data.values

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({}, "series"),
            ({"series": "loss", "max_points": 1}, "max_points"),
            ({"series": "loss", "attempt": 0}, "attempt"),
            ({"series": "loss", "attempt": 2**63}, "attempt"),
            ({"series": "loss", "from": 3}, "from"),
        ],
    )
    def test_a_query_that_means_nothing_is_refused(self, job, refused, params, field):
        answer = job.client.get(f"{job.path}/series/data", params=params)
        refused(answer, 422, "invalid_input", field)

    def test_a_series_that_the_run_does_not_have_is_404(self, job, refused):
        answer = job.client.get(f"{job.path}/series/data", params={"series": "nonsense"})
        refused(answer, 404, "unknown_series")
