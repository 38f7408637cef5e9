import math
from datetime import timedelta

import numpy as np
import pytest

from stabilizer.errors import ConflictError, NotFoundError
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.queries import CommandCreate, Note
from stabilizer.protocol.runs import Heartbeat, RunUpdate
from stabilizer.protocol.series import Catalog
from stabilizer.protocol.views import CommandPreviewRequest

ADA = "person:ada"
SPEED = Catalog.of(
    ["loss", 'lr{group="0"}', 'lr{group="embed"}', "lr_scale", "step_seconds", "grad_norm"]
)
WARMUP = 1000


@pytest.fixture
def run_id(services, make):
    register = make.register(catalogs=(SPEED,), global_batch=64)
    return services.runs.register(register).run_id


@pytest.fixture
def train(services, run_id, make):
    """Report steps: a rate that rises with the step, and two seconds for each of them."""

    def train(sequence, steps, *, scale=1.0, seconds=2.0, loss=2.0, **header):
        steps = np.array(list(steps))
        rate = steps / WARMUP * scale
        ones = np.ones(len(steps))
        columns = [ones * loss, rate, 2 * rate, ones * scale, ones * seconds, ones]
        block = make.block(steps, catalog=SPEED, values=np.stack(columns, axis=1))
        services.ingest.accept(run_id, make.batch(sequence, blocks=[block], **header))

    return train


@pytest.fixture
def held(train, make):
    """Forty steps, with snapshots of which those up to 30 are healthy."""
    snapshots = [make.snapshot(step, samples=64 * step) for step in (10, 20, 30, 38)]
    snapshots.append(make.snapshot(25, id="broken", finite=False))
    train(0, range(1, 41), snapshots=tuple(snapshots))


def preview(services, run_id, kind="pause", attempt=None, **parameters):
    asked = {"parameters": {"kind": kind, **parameters}, "attempt": attempt}
    return services.previews.preview(run_id, CommandPreviewRequest.model_validate(asked))


def create(services, run_id, kind="pause", **parameters):
    asked = {"parameters": {"kind": kind, **parameters}, "reason": "by hand"}
    return services.commands.create(run_id, CommandCreate.model_validate(asked), ADA)


def refusal(call, *args, **given):
    with pytest.raises(ConflictError) as caught:
        call(*args, **given)
    return caught.value.code


@pytest.mark.usefixtures("held")
class TestRollback:
    def test_it_shows_what_is_lost_and_what_is_skipped(self, services, run_id):
        found = preview(services, run_id, "rollback", to_step=29, skip_steps=5)
        assert found.parameters.target.model_dump() == {
            "snapshot_id": "s20",
            "attempt": 1,
            "attempt_id": None,  # set on delivery
            "step": 20,
        }
        assert (found.attempt, found.step, found.steps_lost) == (1, 40, 20)
        assert found.seconds_lost == pytest.approx(40.0)
        assert (found.skip_steps, found.skipped_samples, found.skip_from_sample) == (5, 320, 1280)
        assert (found.target_healthy, found.warnings, found.unsettled) == (True, (), ())

    def test_the_rate_goes_back_with_the_scheduler_and_keeps_the_cuts(
        self, services, run_id, train
    ):
        train(1, range(41, 51), scale=0.5)
        cut = {"factor": 0.5, "hold_steps": 10}
        found = preview(services, run_id, "rollback", to_step=20, reduce_lr=cut)
        assert found.lr == pytest.approx({"0": 0.025, "embed": 0.05})
        assert (found.lr_scale_before, found.lr_scale_after) == (0.5, 0.25)
        assert found.lr_after == pytest.approx({"0": 0.02 * 0.25, "embed": 0.04 * 0.25})

    def test_a_snapshot_that_is_not_healthy_yet_is_warned_of(self, services, run_id):
        found = preview(services, run_id, "rollback", snapshot_id="s38")
        assert (found.target_healthy, found.warnings) == (False, ("target_not_healthy",))

    def test_a_target_on_an_abandoned_branch_is_warned_of(self, services, run_id, train, make):
        snapshots = (make.snapshot(20), make.snapshot(30))
        start = make.rollback_start(20)
        train(0, range(21, 25), attempt=2, attempt_start=start, snapshots=snapshots)
        found = preview(services, run_id, "rollback", snapshot_id="s30")
        assert "target_abandoned" in found.warnings
        assert (found.step, found.steps_lost) == (24, 0)
        assert (
            "target_abandoned"
            not in preview(services, run_id, "rollback", snapshot_id="s20").warnings
        )

    def test_without_a_skip_nothing_is_skipped(self, services, run_id):
        found = preview(services, run_id, "rollback")
        assert (found.parameters.target.step, found.skipped_samples) == (30, 0)

    @pytest.mark.parametrize(
        ("parameters", "code"),
        [
            ({"snapshot_id": "gone"}, "unknown_snapshot"),
            ({"snapshot_id": "broken"}, "snapshot_not_finite"),
            ({"to_step": 9}, "no_healthy_snapshot"),
        ],
    )
    def test_it_is_refused_as_the_command_would_be(self, services, run_id, parameters, code):
        assert refusal(preview, services, run_id, "rollback", **parameters) == code
        assert refusal(create, services, run_id, "rollback", **parameters) == code


@pytest.mark.usefixtures("held")
class TestOthers:
    def test_a_cut_multiplies_rate_and_scale(self, services, run_id):
        found = preview(services, run_id, "reduce_lr", factor=0.5)
        assert found.lr_after == pytest.approx({"0": 0.02, "embed": 0.04})
        assert (found.lr_scale_before, found.lr_scale_after) == (1.0, 0.5)
        assert (found.steps_lost, found.seconds_lost, found.skipped_samples) == (0, 0.0, None)
        assert (found.target_healthy, found.skip_from_sample) == (None, None)

    def test_a_rate_is_shown_as_it_was_set(self, services, run_id):
        assert preview(services, run_id).lr["0"] == 0.04  # and not 0.03999999910593033

    def test_what_is_not_settled_is_reported(self, services, run_id):
        first = create(services, run_id)
        found = preview(services, run_id, "checkpoint_now")
        assert (found.unsettled, found.warnings) == ((first.id,), ("other_command_in_flight",))
        services.commands.poll(run_id, 1)
        services.commands.result(run_id, CommandResult(command_id=first.id, state="applied"))
        assert preview(services, run_id, "checkpoint_now").unsettled == ()

    @pytest.mark.parametrize(
        ("state", "kind", "warnings"),
        [
            ("paused", "reduce_lr", ("run_paused",)),
            ("paused", "resume", ()),
            ("paused", "stop", ()),
            ("running", "resume", ("run_not_paused",)),
        ],
    )
    def test_a_command_that_does_not_fit_the_state(self, services, run_id, state, kind, warnings):
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=40, state=state))
        factor = {"factor": 0.5} if kind == "reduce_lr" else {}
        assert preview(services, run_id, kind, **factor).warnings == warnings

    def test_a_run_that_is_lost_is_warned_of(self, services, run_id, clock):
        clock.advance(3600)
        services.runs.sweep_lost()
        assert preview(services, run_id).warnings == ("run_not_reporting",)

    def test_nothing_is_written_and_nobody_is_woken(self, services, run_id):
        audit, cursor = services.queries.audit(run_id), services.feed.cursor()
        preview(services, run_id, "rollback")
        preview(services, run_id, "reduce_lr", factor=0.5)
        assert services.queries.audit(run_id) == audit
        assert services.commands.list(run_id) == []
        assert services.feed.cursor() == cursor

    def test_a_past_attempt_and_an_ended_run_are_refused(self, services, run_id):
        assert refusal(preview, services, run_id, attempt=2) == "past_attempt"
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=40, state="finished"))
        assert refusal(preview, services, run_id) == "run_ended"


class TestMeasured:
    def test_what_was_not_measured_is_not_known(self, services, make):
        run_id = services.runs.register(make.register(name="bare")).run_id
        held = (make.snapshot(0), make.snapshot(2))
        services.ingest.accept(run_id, make.batch(0, range(1, 41), snapshots=held))
        found = preview(services, run_id, "rollback", skip_steps=3)
        assert (found.seconds_lost, found.skipped_samples) == (None, None)
        assert (found.lr, found.lr_after, found.lr_scale_before) == ({}, {}, None)
        assert found.warnings == ("global_batch_unknown",)

    def test_an_empty_run(self, services, run_id):
        found = preview(services, run_id, "reduce_lr", factor=0.5)
        assert (found.step, found.lr, found.lr_scale_after) == (0, {}, None)

    def test_nan_is_shown_and_kept_out_of_the_median(self, services, run_id, train):
        train(0, range(1, 4), seconds=math.nan)
        train(1, range(4, 8), scale=math.nan, seconds=3.0)
        found = preview(services, run_id, "reduce_lr", factor=0.5)
        assert math.isnan(found.lr["0"])
        assert '"NaN"' in found.model_dump_json()

    def test_the_abandoned_branch_does_not_count(self, services, run_id, train, make):
        train(0, range(1, 41))
        train(0, [], attempt=2, attempt_start=make.rollback_start(10))
        assert preview(services, run_id).lr["0"] == pytest.approx(0.01)


class TestStored:
    @pytest.fixture
    def proposed(self, services, run_id, train, make):
        """A cut that the policy proposes."""
        services.runs.update(run_id, RunUpdate(mode="propose", reason="test"), ADA)
        train(0, range(1, 41), snapshots=(make.snapshot(10),))
        train(1, range(41, 44), loss=50.0)
        (command,) = services.commands.list(run_id)
        return command

    def test_a_proposal_is_shown_as_it_would_be_now(self, services, run_id, proposed, train):
        train(2, range(44, 51), loss=50.0)
        found = services.previews.of_command(proposed.id)
        assert found.parameters == proposed.parameters
        assert (found.step, found.lr_after["0"]) == (50, pytest.approx(0.025))
        assert (found.unsettled, found.warnings) == ((), ())

    def test_others_see_it_waiting(self, services, run_id, proposed):
        found = preview(services, run_id)
        assert (found.unsettled, found.warnings) == ((proposed.id,), ("command_proposed",))

    def test_what_is_settled_or_over_has_no_future(self, services, run_id, proposed, clock):
        clock.advance(timedelta(days=1).total_seconds())
        assert refusal(services.previews.of_command, proposed.id) == "command_settled"
        by_hand = create(services, run_id)
        services.commands.cancel(by_hand.id, Note(reason="no"), ADA)
        assert refusal(services.previews.of_command, by_hand.id) == "command_settled"

    def test_a_target_that_the_job_dropped_is_refused(self, services, run_id, train, make):
        train(0, range(1, 41), snapshots=(make.snapshot(10),))
        command = create(services, run_id, "rollback", snapshot_id="s10", skip_steps=1)
        assert services.previews.of_command(command.id).skipped_samples == 64
        train(1, [41], snapshots=(make.snapshot(40),))
        assert refusal(services.previews.of_command, command.id) == "unknown_snapshot"

    def test_what_does_not_exist_is_named(self, services):
        for call, code in (
            (lambda: services.previews.of_command("x"), "unknown_command"),
            (lambda: preview(services, "x"), "unknown_run"),
        ):
            with pytest.raises(NotFoundError) as caught:
                call()
            assert caught.value.code == code
