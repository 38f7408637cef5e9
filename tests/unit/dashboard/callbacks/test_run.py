"""What happened to a run as the parts of its page, and which of them go to a page again."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from dash import html, no_update
from plotly.utils import PlotlyJSONEncoder

from dashboard import ids
from dashboard.callbacks.renewal import only_changed
from dashboard.callbacks.run import NAMES, Story, renewed_previews, view_run
from stabilizer.protocol.commands import (
    Command,
    CommandState,
    PauseParameters,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import (
    DecisionKind,
    DecisionReason,
    Incident,
    IncidentState,
    Severity,
)
from stabilizer.protocol.queries import (
    AuditAction,
    AuditEntry,
    AuditReason,
    RuleHealthInfo,
    RunRules,
)
from stabilizer.protocol.runs import Run
from stabilizer.protocol.views import CommandPreview

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HTML = "<script>alert('x')</script> & \"more\""


def story(**given):
    """A run of which nothing is known but that it exists; a test adds what it is about."""
    run = Run(
        id="r1",
        name="run",
        key="",
        state="running",
        mode="propose",
        attempt=1,
        step=0,
        world_size=1,
        global_batch=None,
        git_revision=None,
        rules_hash="h",
        config={},
        created_at=NOW,
        last_seen_at=NOW,
        open_incident_id=None,
    )
    nothing = dict.fromkeys(("incidents", "alerts", "commands", "markers", "audit"), ())
    health = given.pop("health", ())
    rules = RunRules(hash="h", text=given.pop("text", ""), mode="propose", health=health)
    return Story(**{"run": run, "rules": rules, **nothing, **given})


def command(number=1, state=CommandState.PROPOSED, parameters=None):
    target = SnapshotTarget(snapshot_id="s4", attempt=1, step=4)
    return Command(
        id=f"c{number}",
        run_id="r1",
        attempt=1,
        parameters=parameters or RollbackParameters(target=target),
        state=state,
        reason="divergence",
        issued_step=11,
        issued_at=NOW - timedelta(seconds=30),
        expires_at=NOW + timedelta(hours=1),
    )


def incident(number=1, resolved_step=None, **given):
    fields = {
        "id": f"i{number}",
        "run_id": "r1",
        "number": number,
        "state": IncidentState.OPEN if resolved_step is None else IncidentState.RESOLVED,
        "attempt": 1,
        "first_step": 10,
        "opened_step": 11,
        "resolved_step": resolved_step,
        "severity": Severity.DIVERGENCE,
        "rules": ("loss_not_finite",),
        "decision": DecisionKind.WAIT,
        "reason": DecisionReason.MAY_RECOVER,
        "opened_at": NOW,
    }
    return Incident(**fields | given)


def entries(count):
    return [
        AuditEntry(
            id=number,
            at=NOW - timedelta(seconds=count - number),
            run_id="r1",
            actor="person:ada",
            action=AuditAction.RUN_MODE_CHANGED,
            subject="r1",
            reason=AuditReason.REQUESTED_BY_PERSON,
            message=f"for reason {number}.",
            before={"mode": "auto"},
            after={"mode": "observe"},
        )
        for number in range(1, count + 1)
    ]


def view(limit=40, now=NOW, **given):
    return view_run(story(**given), now, limit)


def sent(part):
    """What the browser is sent of a part."""
    return json.dumps(part, cls=PlotlyJSONEncoder, ensure_ascii=False)


def parts(viewed):
    return {name: sent(part) for name, part in zip(NAMES, viewed.parts, strict=True)}


class TestView:
    def test_new_run_has_empty_parts(self):
        viewed = view()
        told = parts(viewed)
        assert "No open incident" in told[f"{ids.RUN_INCIDENT}.children"]
        assert "No events yet" in told[f"{ids.TIMELINE}.children"]
        assert told[f"{ids.TIMELINE_MORE}.display"] == '"none"'
        empty = (ids.RUN_PROPOSALS, ids.RUN_COMMANDS)
        assert {told[f"{name}.children"] for name in empty} == {"[]"}
        assert {told[f"{name}.children"] for name in (ids.RUN_PAST, ids.RUN_RULES)} == {"null"}
        json.dumps(viewed.facts, allow_nan=False)

    def test_long_history_shows_its_newest_entries(self):
        told = parts(view(audit=entries(2000)))
        log = told[f"{ids.TIMELINE}.children"]
        assert ("for reason 2000." in log, "for reason 1960." in log) == (True, False)
        assert "1,960 earlier not shown" in log
        assert told[f"{ids.TIMELINE_MORE}.display"] == '"block"'
        assert sum(map(len, told.values())) < 100_000
        everything = parts(view(limit=5000, audit=entries(2000)))
        assert everything[f"{ids.TIMELINE_MORE}.display"] == '"none"'
        assert "for reason 1." in everything[f"{ids.TIMELINE}.children"]

    def test_proposals_with_and_without_preview(self):
        preview = CommandPreview(
            parameters=command().parameters, attempt=1, step=11, steps_lost=7, target_healthy=True
        )
        viewed = view(commands=[command(1), command(2)], previews={"c1": preview})
        first, second = viewed.parts[NAMES.index(f"{ids.RUN_PROPOSALS}.children")]
        assert "steps" in sent(first)
        assert len(sent(first)) > len(sent(second))
        for number, card in ((1, first), (2, second)):
            for kind in (ids.APPROVE, ids.REJECT):
                assert sent({"type": kind, "id": f"c{number}"}) in sent(card)

    def test_commands_in_flight_come_first(self):
        pause = PauseParameters()
        commands = [
            command(1, CommandState.REJECTED, pause),
            command(2, CommandState.EXPIRED, pause),
            command(3, CommandState.DELIVERED),
            command(4, CommandState.PENDING),
        ]
        told = story(commands=commands)
        assert [one.id for one in told.shown] == ["c4", "c3", "c2"]
        assert len(view(commands=commands).parts[NAMES.index(f"{ids.RUN_COMMANDS}.children")]) == 3

    def test_open_incident_describes_its_rules(self):
        text = "rules: [{name: loss_not_finite, doc: The loss is NaN or Inf.}]"
        told = parts(view(incidents=[incident(2), incident(1, resolved_step=9)], text=text))
        card = told[f"{ids.RUN_INCIDENT}.children"]
        assert "Incident 2" in card
        assert "The loss is NaN or Inf." in card
        assert "Incident 1" in told[f"{ids.RUN_PAST}.children"]

    def test_list_of_incidents_is_limited_to_the_newest(self):
        past = parts(view(incidents=[incident(n, resolved_step=12) for n in range(1, 251)]))
        listed = past[f"{ids.RUN_PAST}.children"]
        assert listed.index("Incident 250") < listed.index("Incident 231")
        assert "Incident 230" not in listed
        assert "230 earlier in the timeline" in listed

    def test_broken_rules_show_their_error(self):
        health = (
            RuleHealthInfo(name="good", ok=True, last_error=None, evaluations=9),
            RuleHealthInfo(name="bad", ok=False, last_error=HTML, evaluations=3),
        )
        viewed = view(health=health)
        told = sent(viewed.parts[NAMES.index(f"{ids.RUN_RULES}.children")])
        assert json.dumps(f"bad: {HTML}") in told
        assert "good" not in told
        assert viewed.facts["rules"] == ["good", "bad"]

    def test_text_of_jobs_and_users_is_plain_text(self):
        run = story().run.model_copy(update={"name": HTML, "key": HTML})
        log = [one.model_copy(update={"message": HTML}) for one in entries(1)]
        told = parts(view(run=run, audit=log, incidents=[incident(rules=(HTML,))]))
        quoted = json.dumps(HTML)
        for name in (ids.RUN_HEADER, ids.RUN_INCIDENT):
            assert quoted in told[f"{name}.children"]
        assert quoted[1:-1] in told[f"{ids.TIMELINE}.children"]
        assert not any("dangerously" in part for part in told.values())


class TestOnlyChanged:
    @pytest.fixture
    def first(self):
        return view(commands=[command()], audit=entries(3), incidents=[incident()])

    def test_new_page_gets_all_parts(self, first):
        changed, digests = only_changed(NAMES, first.parts, {})
        assert changed == list(first.parts)
        assert set(digests) == set(NAMES)
        assert json.loads(json.dumps(digests)) == digests

    def test_unchanged_page_gets_no_parts(self, first):
        _, digests = only_changed(NAMES, first.parts, {})
        again = view(commands=[command()], audit=entries(3), incidents=[incident()])
        changed, same = only_changed(NAMES, again.parts, digests)
        assert changed == [no_update] * len(NAMES)
        assert same == digests

    def test_changed_parts_only(self, first):
        _, digests = only_changed(NAMES, first.parts, {})
        later = view(commands=[command()], audit=entries(3), incidents=[])
        changed, after = only_changed(NAMES, later.parts, digests)
        different = {
            name for name, part in zip(NAMES, changed, strict=True) if part is not no_update
        }
        assert f"{ids.RUN_INCIDENT}.children" in different
        assert not different & {
            f"{name}.children" for name in (ids.RUN_HEADER, ids.RUN_PROPOSALS, ids.RUN_COMMANDS)
        }
        back, _ = only_changed(NAMES, first.parts, after)
        assert back[NAMES.index(f"{ids.RUN_INCIDENT}.children")] is not no_update

    def test_passing_time_updates_nothing(self, first):
        _, digests = only_changed(NAMES, first.parts, {})
        later = NOW + timedelta(minutes=5)
        aged = view(now=later, commands=[command()], audit=entries(3), incidents=[incident()])
        changed, _ = only_changed(NAMES, aged.parts, digests)
        kept = [name for name, part in zip(NAMES, changed, strict=True) if part is no_update]
        assert kept == list(NAMES)

    def test_emptied_part_is_emptied_on_the_page(self):
        _, digests = only_changed(NAMES, view(commands=[command()]).parts, {})
        changed, _ = only_changed(NAMES, view(commands=[]).parts, digests)
        assert changed[NAMES.index(f"{ids.RUN_PROPOSALS}.children")] == []

    @pytest.mark.parametrize("known", [{"other": "x"}, dict.fromkeys(NAMES, "")], ids=str)
    def test_page_of_another_version_gets_all_parts(self, first, known):
        changed, _ = only_changed(NAMES, first.parts, known)
        assert changed == list(first.parts)

    def test_nested_difference_is_detected(self):
        def nested(text):
            return html.Div([html.P(["a", html.Span(text, title="t")])])

        places = len(NAMES) - 1
        _, digests = only_changed(NAMES, [nested("x"), *[None] * places], {})
        changed, _ = only_changed(NAMES, [nested("y"), *[None] * places], digests)
        assert changed[0] is not no_update
        assert changed[1:] == [no_update] * places


class TestPreviews:
    """What a proposal would do changes with every step; its buttons must stay where they are."""

    def at(self, step, **given):
        proposed = command()
        preview = CommandPreview(parameters=proposed.parameters, attempt=1, step=step)
        return view(commands=[proposed], previews={"c1": preview}, **given)

    def test_step_updates_the_preview_only(self):
        first, later = self.at(460), self.at(480)
        _, digests = only_changed(NAMES, first.parts, {}, first.stable)
        changed, _ = only_changed(NAMES, later.parts, digests, later.stable)
        assert changed[NAMES.index(f"{ids.RUN_PROPOSALS}.children")] is no_update
        (panel,) = renewed_previews(later, [{"type": ids.PREVIEW, "id": "c1"}], changed)
        assert "step 480" in repr(panel)

    def test_new_card_includes_its_preview(self):
        first = self.at(460)
        changed, _ = only_changed(NAMES, first.parts, {}, first.stable)
        assert "step 460" in repr(changed[NAMES.index(f"{ids.RUN_PROPOSALS}.children")])
        assert renewed_previews(first, [{"type": ids.PREVIEW, "id": "c0"}], changed) == [no_update]

    def test_preview_is_removed_when_not_applicable(self):
        first = self.at(460)
        _, digests = only_changed(NAMES, first.parts, {}, first.stable)
        gone = view(commands=[command()])
        changed, _ = only_changed(NAMES, gone.parts, digests, gone.stable)
        assert renewed_previews(gone, [{"type": ids.PREVIEW, "id": "c1"}], changed) == [None]
