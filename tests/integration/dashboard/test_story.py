"""Data of a run's page, from divergence to read-back."""

import pytest

from dashboard.callbacks.run import read_story, rule_docs
from dashboard.components.command_progress import verify
from dashboard.errors import CollectorUnavailableError, MissingError
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.queries import CommandCreate

PAUSE = CommandCreate(parameters={"kind": "pause"}, reason="let me look")
CUT = CommandCreate(
    parameters={"kind": "reduce_lr", "factor": 0.5, "hold_steps": 10}, reason="a little slower"
)


@pytest.fixture
def story_of(ask):
    return lambda collector, run_id: ask(collector, lambda client: read_story(client, run_id))


def test_of_a_run_that_has_just_begun_there_is_nothing_to_tell(collector, job, story_of):
    story = story_of(collector, job.run_id)
    assert story.run.id == job.run_id
    assert (story.proposed, story.shown, story.open_incident) == ([], [], None)
    assert (story.alerts, story.commands, story.markers) == ([], [], [])
    assert story.audit[0].action == "run_registered"


def test_from_the_proposal_to_the_read_back(collector, job, ask, story_of):
    command = job.break_down()
    proposed = story_of(collector, job.run_id)
    ask(collector, lambda client: client.approve(command["id"], "I agree"))
    job.report([12], "NaN")
    under_way = story_of(collector, job.run_id)
    job.carry_out(command)
    done = story_of(collector, job.run_id)

    assert [one.id for one in proposed.proposed] == [command["id"]]
    assert proposed.shown == []
    assert proposed.previews[command["id"]].steps_lost == 7
    assert proposed.open_incident.rules == ("loss_not_finite",)
    assert [one.state for one in under_way.shown] == [CommandState.DELIVERED]
    assert under_way.proposed == []
    assert under_way.previews == {}
    (applied,) = done.shown
    assert applied.state is CommandState.APPLIED
    assert done.baselines[applied.id].lr_scale == 1.0
    assert verify(applied, done.baselines[applied.id]).ok
    assert [marker.kind for marker in done.markers] == ["rollback"]
    assert [attempt.number for attempt in done.run.attempts] == [1, 2]


def test_a_read_back_that_differs_is_not_taken_for_good(collector, job, ask, story_of):
    command = job.break_down()
    ask(collector, lambda client: client.approve(command["id"], "I agree"))
    job.report([12], "NaN")
    job.carry_out(command, lr_scale=1.0)
    story = story_of(collector, job.run_id)
    verdict = verify(story.shown[0], story.baselines[command["id"]])
    assert verdict.ok is False
    assert [check.what for check in verdict.checks if check.ok is False] == ["lr_scale"]


def test_proposal_without_its_snapshot_has_no_preview(collector, job, story_of):
    command = job.break_down()
    job.report([12], "NaN", snapshots=[])
    story = story_of(collector, job.run_id)
    assert command["id"] not in story.previews


def test_of_what_is_settled_the_newest_is_shown_in_full(collector, job, ask, story_of):
    async def act(client):
        first = await client.send_command(job.run_id, PAUSE)
        await client.cancel(first.id, "not yet")
        second = await client.send_command(job.run_id, PAUSE)
        await client.cancel(second.id, "not at all")
        third = await client.send_command(job.run_id, CUT)
        return first.id, second.id, third.id

    first, second, third = ask(collector, act)
    story = story_of(collector, job.run_id)
    assert [one.id for one in story.commands] == [first, second, third]
    assert [one.id for one in story.shown] == [third, second]
    assert story.baselines[third].lr_scale is None  # it is not carried out yet


def test_where_lr_scale_was_never_measured_nothing_is_guessed(collector, job, ask, story_of):
    given = ask(collector, lambda client: client.send_command(job.run_id, CUT))
    (delivered,) = job.report()["commands"]
    read_back = {"attempt": 1, "step": 0, "lr": {"all": 1e-3}, "lr_scale": 0.5}
    result = {
        "command_id": delivered["id"],
        "state": "applied",
        "applied_step": 0,
        "read_back": read_back,
    }
    job.post(f"/runs/{job.run_id}/commands/{given.id}/result", result)
    story = story_of(collector, job.run_id)
    assert story.baselines[given.id].lr_scale is None
    assert story.baselines[given.id].global_batch == 64


def test_deleted_run_raises(collector, job, story_of):
    job.break_down()
    job.end()
    job.delete()
    with pytest.raises(MissingError):
        story_of(collector, job.run_id)


def test_unavailable_collector_raises(start_collector, make_job, story_of):
    collector = start_collector()
    job = make_job(collector)
    collector.stop()
    with pytest.raises(CollectorUnavailableError):
        story_of(collector, job.run_id)


class TestRuleDocs:
    def test_what_each_rule_says_of_itself(self, collector, job, story_of):
        docs = rule_docs(story_of(collector, job.run_id).rules.text)
        assert docs == {"loss_not_finite": "The loss is NaN or Inf."}

    @pytest.mark.parametrize(
        "text",
        ["", "rules:", "rules: 3", "rules: [3, null]", "- a", "rules: [", "a: b: c", "\x00"],
    )
    def test_a_file_that_says_nothing_is_no_hindrance(self, text):
        assert rule_docs(text) == {}

    def test_rule_without_description(self):
        assert rule_docs("rules: [{name: a}, {name: b, doc: c}]") == {"a": "", "b": "c"}
