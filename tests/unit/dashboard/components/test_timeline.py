import math
import re

import pytest
from dash import html

from dashboard.components.timeline import build_timeline, timeline
from dashboard.components.timeline_entries import EntryKind
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import (
    CommandResult,
    CommandState,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
)
from stabilizer.protocol.decisions import (
    AlertState,
    Decision,
    DecisionKind,
    DecisionReason,
    IncidentState,
    Severity,
)
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import MarkerInfo

HOSTILE = "<script>alert(1)</script> ![x](javascript:alert(1))"


def decided(step: int, kind: DecisionKind, reason: DecisionReason, **override) -> Decision:
    return Decision(**({"step": step, "attempt": 1, "kind": kind, "reason": reason} | override))


PROPOSES = decided(312, DecisionKind.PROPOSE, DecisionReason.DIVERGENCE, command_id="c1")
WATCHES = decided(314, DecisionKind.WAIT, DecisionReason.WATCHING, deadline_step=450)
RESOLVES = decided(460, DecisionKind.RESOLVE, DecisionReason.INTERVENTION_HELPED, attempt=2)


@pytest.fixture
def audited(create_audit, minute):
    """The audit entry of a decision on incident i1."""

    def create(decision: Decision, minutes: float):
        return create_audit(
            AuditAction.DECISION_MADE,
            at=minute(minutes),
            subject="i1",
            reason=decision.reason,
            after={
                "kind": decision.kind.value,
                "step": decision.step,
                "attempt": decision.attempt,
                "command_id": decision.command_id,
            },
        )

    return create


@pytest.fixture
def create_attempt(minute):
    def create(number: int, **override):
        fields = {
            "number": number,
            "from_step": 0,
            "last_step": 500,
            "parent": None if number == 1 else number - 1,
            "reason": "resume",
            "command_id": None,
            "skipped_samples": 0,
            "started_at": minute(0),
        }
        return Attempt(**(fields | override))

    return create


@pytest.fixture
def audit_log(create_audit, audited, moved, minute):
    rollback = {"attempt": 2, "from_step": 200, "command_id": "c1"}
    return [
        create_audit(
            AuditAction.RUN_REGISTERED, at=minute(0), reason=AuditReason.REGISTERED, actor="job"
        ),
        create_audit(AuditAction.ATTEMPT_STARTED, at=minute(0), after={"attempt": 1}),
        create_audit(
            AuditAction.INCIDENT_CHANGED,
            at=minute(10),
            subject="i1",
            reason=DecisionReason.DIVERGENCE,
            after={"state": "open", "severity": "divergence"},
        ),
        moved(None, "proposed", at=minute(10)),
        audited(PROPOSES, 10),
        moved(
            "proposed",
            "pending",
            at=minute(12),
            actor="person:anna",
            reason=AuditReason.APPROVED_BY_PERSON,
            message="looks right",
        ),
        moved("pending", "delivered", at=minute(13), actor="collector"),
        moved("delivered", "applied", at=minute(14), actor="job", reason=AuditReason.CARRIED_OUT),
        audited(WATCHES, 14),
        create_audit(AuditAction.ATTEMPT_STARTED, at=minute(14.5), after=rollback),
        audited(RESOLVES, 25),
    ]


@pytest.fixture
def whole_story(create_incident, create_applied, create_alert, create_attempt, audit_log, minute):
    """An incident from first alert to resolution, in every source."""
    incident = create_incident(
        PROPOSES, WATCHES, RESOLVES, state=IncidentState.RESOLVED, resolved_step=460, helped=True
    )
    return {
        "incidents": [incident],
        "commands": [create_applied()],
        "alerts": [create_alert(id=f"a{n}", series=f"loss{n}") for n in range(3)],
        "markers": [
            MarkerInfo(attempt=2, step=200, kind="lr_change", text="lr_scale 0.5", at=minute(15)),
            MarkerInfo(attempt=2, step=200, kind="rollback", text="", at=minute(15)),
        ],
        "attempts": [
            create_attempt(1),
            create_attempt(
                2, from_step=200, reason="rollback", command_id="c1", started_at=minute(14.5)
            ),
        ],
        "audit": audit_log,
    }


def test_entries_are_unique_and_in_order(whole_story):
    entries = build_timeline(**whole_story, global_batch=64)
    assert [entry.title for entry in reversed(entries)] == [
        "Attempt 1 started at step 0",
        "Rule loss_diverging firing: divergence",
        "Incident 1 opened: proposed (roll back to step 200)",
        "Approved: roll back to step 200",
        "Applied: roll back to step 200",
        "Incident 1: waiting",
        "Incident 1 resolved",
    ]
    assert len({entry.key for entry in entries}) == len(entries)


def test_timeline_does_not_depend_on_the_order_of_sources(whole_story):
    turned = {name: list(reversed(parts)) for name, parts in whole_story.items()}
    assert build_timeline(**turned) == build_timeline(**whole_story)


def test_entries_have_actor_time_and_references(whole_story, minute):
    by_title = {entry.title: entry for entry in build_timeline(**whole_story)}
    approved = by_title["Approved: roll back to step 200"]
    assert (approved.actor, approved.text, approved.at) == (
        "person:anna",
        "looks right",
        minute(12),
    )
    assert (approved.command_id, approved.incident_id) == ("c1", "i1")
    applied = by_title["Applied: roll back to step 200"]
    assert (applied.attempt, applied.step, applied.kind) == (1, 314, EntryKind.DONE)
    assert applied.text == "At step 200 in attempt 2, 640 samples skipped, lr_scale 1"
    assert ("learning rate of group 0", "0.0003") in applied.details


TOLD_WITHOUT = {
    "audit": [
        "Attempt 1 started at step 0",
        "Rule loss_diverging firing: divergence",
        "Incident 1 opened: proposed (roll back to step 200)",
        "Incident 1: waiting",
        "Applied: roll back to step 200",
        "Incident 1 resolved",
    ],
    "incidents": [
        "Attempt 1 started at step 0",
        "Rule loss_diverging firing: divergence",
        "Policy decision: proposed",
        "Approved: roll back to step 200",
        "Applied: roll back to step 200",
        "Policy decision: waiting",
        "Policy decision: resolved",
    ],
    "commands": [
        "Attempt 1 started at step 0",
        "Rule loss_diverging firing: divergence",
        "Incident 1 opened: proposed",
        "Command proposed",
        "Command pending",
        "Command delivered",
        "Incident 1: waiting",
        "Command applied",
        "Attempt 2 started at step 200",
        "Learning rate changed",
        "Incident 1 resolved",
    ],
    "alerts": [
        "Attempt 1 started at step 0",
        "Incident 1 opened: proposed (roll back to step 200)",
        "Approved: roll back to step 200",
        "Applied: roll back to step 200",
        "Incident 1: waiting",
        "Incident 1 resolved",
    ],
    "attempts": [
        "Attempt 1 started",
        "Run registered",
        "Rule loss_diverging firing: divergence",
        "Incident 1 opened: proposed (roll back to step 200)",
        "Approved: roll back to step 200",
        "Applied: roll back to step 200",
        "Incident 1: waiting",
        "Incident 1 resolved",
    ],
}


@pytest.mark.parametrize("missing", ["audit", "incidents", "commands", "alerts", "attempts"])
def test_missing_source_costs_only_its_own_facts(whole_story, missing):
    entries = build_timeline(**(whole_story | {missing: []}))
    titles = [entry.title for entry in reversed(entries)]
    assert len({entry.key for entry in entries}) == len(entries)
    assert titles == TOLD_WITHOUT[missing]


def test_no_sources_give_an_empty_timeline():
    assert build_timeline() == []


def test_alerts_of_one_rule_at_one_step_are_one_entry(create_alert):
    alerts = [create_alert(id=f"a{n}", series=f"s{n}", score=float(n)) for n in range(30)]
    [entry] = build_timeline(alerts=alerts)
    assert entry.text == "on 30 series, score 29 above 0.03"
    assert entry.details[0] == ("s29", "value 4.2, score 29")
    assert entry.details[-1] == ("and", "10 more")


def test_alerts_at_other_steps_or_attempts_are_separate_entries(create_alert):
    alerts = [create_alert(), create_alert(firing_step=320), create_alert(attempt=2)]
    entries = build_timeline(alerts=alerts)
    assert [(entry.attempt, entry.step) for entry in entries] == [(2, 310), (1, 320), (1, 310)]


def test_alert_that_never_fired_is_omitted(create_alert):
    pending = create_alert(state=AlertState.PENDING, firing_step=None)
    assert build_timeline(alerts=[pending]) == []


@pytest.mark.parametrize(
    ("scores", "said"), [((1.0, math.nan), "score NaN"), ((None, None), "value NaN")]
)
def test_alert_on_nan_shows_nan(create_alert, scores, said):
    alerts = [create_alert(id=str(n), score=s, value=math.nan) for n, s in enumerate(scores)]
    [entry] = build_timeline(alerts=alerts)
    assert said in entry.text


def test_lost_run_is_one_entry(create_alert, create_audit):
    alert = create_alert(rule="no_sign_of_life", severity=Severity.NOTICE, series="")
    lost = create_audit(
        AuditAction.RUN_STATE_CHANGED,
        reason=AuditReason.NO_SIGN_OF_LIFE,
        message="no sign of life for 30 s",
        before={"state": "running"},
        after={"state": "lost"},
    )
    [entry] = build_timeline(alerts=[alert], audit=[lost])
    assert (entry.title, entry.text) == ("Run lost", "no sign of life for 30 s")


def test_higher_severity_is_an_entry(create_incident, create_audit):
    worse = create_audit(
        AuditAction.INCIDENT_CHANGED,
        subject="i1",
        reason=DecisionReason.DIVERGENCE,
        before={"state": "acting", "severity": "precursor"},
        after={"state": "acting", "severity": "divergence"},
    )
    titles = [e.title for e in build_timeline(incidents=[create_incident(PROPOSES)], audit=[worse])]
    assert "Incident 1 is now a divergence" in titles


def test_manual_command_shows_reason_and_delivery(create_command, moved, minute):
    command = create_command(
        parameters=PauseParameters(),
        state=CommandState.DELIVERED,
        actor="person:anna",
        reason="manual",
        message="look at shard 17",
        incident_id=None,
    )
    audit = [
        moved(None, "pending", actor="person:anna", message="look at shard 17", reason="manual"),
        moved("pending", "delivered", at=minute(20), actor="collector"),
    ]
    entries = build_timeline(commands=[command], audit=audit)
    assert [entry.title for entry in entries] == ["Delivered: pause", "Sent: pause"]
    assert entries[1].text.endswith("Reason: look at shard 17")


def test_late_command_is_expired_and_applied(create_applied, moved):
    audit = [
        moved("delivered", "expired", actor="collector", reason=RejectReason.EXPIRED),
        moved("expired", "applied", actor="job", reason=AuditReason.CARRIED_OUT_LATE),
    ]
    told = {e.title: e for e in build_timeline(commands=[create_applied()], audit=audit)}
    assert told["Expired: roll back to step 200"].kind is EntryKind.REFUSED
    applied = told["Applied: roll back to step 200"]
    assert applied.text.endswith("Applied after it had expired")


def test_expiry_by_both_clocks_is_one_entry(create_command, moved):
    command = create_command(state=CommandState.EXPIRED, reason="expired")
    audit = [
        moved("pending", "expired", actor="collector", reason=RejectReason.EXPIRED),
        moved("expired", "expired", actor="job", reason=RejectReason.EXPIRED),
    ]
    titles = [entry.title for entry in build_timeline(commands=[command], audit=audit)]
    assert titles.count("Expired: roll back to step 200") == 1


def test_mismatch_is_marked(create_applied):
    [applied, _] = build_timeline(commands=[create_applied(step=201)])
    assert applied.tone == "red"
    assert "Differs from the command: step" in applied.text


def test_failure_keeps_the_message_of_the_job(create_command):
    result = CommandResult(
        command_id="c1",
        state=CommandState.FAILED,
        reason=RejectReason.RESTORE_FAILED,
        message=HOSTILE,
    )
    command = create_command(state=CommandState.FAILED, reason="restore_failed", result=result)
    failed = build_timeline(commands=[command])[0]
    assert (failed.title, failed.text) == (
        "Failed: roll back to step 200",
        "The restore failed",
    )
    assert failed.job_message == HOSTILE


def test_unexplained_change_of_the_rate_is_an_entry(create_applied, minute):
    cut = ReduceLrParameters(factor=0.5, hold_steps=100)
    command = create_applied(cut, attempt=1, lr_scale=0.5)
    markers = [
        MarkerInfo(attempt=1, step=314, kind="lr_change", text="lr_scale 0.5", at=minute(14)),
        MarkerInfo(attempt=1, step=414, kind="lr_change", text="lr_scale 0.75", at=minute(24)),
        MarkerInfo(attempt=1, step=420, kind="phase_change", text="448 pixels", at=minute(25)),
    ]
    texts = [e.text for e in build_timeline(commands=[command], markers=markers)]
    assert texts[:2] == ["448 pixels", "lr_scale 0.75"]
    assert "lr_scale 0.5" not in texts


def test_attempt_of_an_unknown_rollback_is_an_entry(create_attempt):
    attempt = create_attempt(2, reason="rollback", command_id="gone", from_step=200)
    [entry] = build_timeline(attempts=[attempt])
    assert entry.text == "Job rolled back, after attempt 1"


@pytest.mark.parametrize(
    ("action", "before", "after", "title"),
    [
        ("run_mode_changed", {"mode": "propose"}, {"mode": "auto"}, "Mode: propose \u2192 auto"),
        ("silence_created", None, {"rule": "*", "until_step": 1800, "until": None},
         "Silenced: all rules until step 1,800"),
        ("silence_removed", {"rule": "a", "until": "2025-05-30T15:00:00Z"}, None,
         "Silence ended: rule a until 2025-05-30 15:00:00 UTC"),
        ("disarmed", {"disarmed": False}, {"disarmed": True}, "All runs disarmed"),
        ("run_rules_changed", {"rules_hash": "a"}, {"rules_hash": "b"}, "Rules changed"),
    ],
)  # fmt: skip
def test_changed_settings_show_their_reason(create_audit, action, before, after, title):
    entry = create_audit(
        AuditAction(action),
        actor="person:bo",
        reason=AuditReason.REQUESTED_BY_PERSON,
        message="night shift",
        before=before,
        after=after,
    )
    [told] = build_timeline(audit=[entry])
    assert (told.title, told.text, told.actor) == (title, "night shift", "person:bo")


def test_unforeseen_audit_entries_are_shown(create_audit):
    strange = [
        create_audit(AuditAction.COMMAND_CHANGED, subject="c1", after={"state": ["odd"]}),
        create_audit(AuditAction.DECISION_MADE, subject="i9", after=None),
        create_audit(AuditAction.RUN_STATE_CHANGED, after={"state": "dreaming"}),
        create_audit(AuditAction.SILENCE_CREATED, after=None),
    ]
    assert len(build_timeline(audit=strange)) == 4


def test_alert_is_placed_between_the_decisions_around_its_step(
    create_incident, create_alert, create_audit, audited, minute
):
    waits = decided(300, DecisionKind.WAIT, DecisionReason.MAY_RECOVER)
    acts = decided(400, DecisionKind.ACT, DecisionReason.DEADLINE_PASSED)
    note = AuditReason.REQUESTED_BY_PERSON
    audit = [
        audited(waits, 10),
        create_audit(AuditAction.ARMED, at=minute(12), reason=note),
        create_audit(AuditAction.DISARMED, at=minute(18), reason=note),
        audited(acts, 20),
    ]
    entries = build_timeline(
        incidents=[create_incident(waits, acts)],
        alerts=[create_alert(firing_step=350)],  # half way: about minute 15
        audit=audit,
    )
    assert [entry.title for entry in reversed(entries)] == [
        "Incident 1 opened: waiting",
        "All runs armed",
        "Rule loss_diverging firing: divergence",
        "All runs disarmed",
        "Incident 1: acting",
    ]


def test_later_attempts_come_above_earlier_ones(create_attempt, create_alert):
    attempts = [create_attempt(1), create_attempt(2, from_step=200)]
    alerts = [create_alert(attempt=a, firing_step=s) for a, s in ((1, 310), (2, 210), (1, 220))]
    entries = build_timeline(alerts=alerts, attempts=attempts)
    seen = [(e.attempt, e.step) for e in entries if e.kind is EntryKind.SEEN]
    assert seen == [(2, 210), (1, 310), (1, 220)]


def items(parts, book) -> list[html.Li]:
    return [
        part
        for part in parts(book)
        if isinstance(part, html.Li) and part.className.startswith("entry")
    ]


def test_timeline_shows_the_newest_and_counts_the_rest(whole_story, parts, text_of, now):
    entries = build_timeline(**whole_story)
    book = timeline(entries, now=now, limit=3)
    assert len(items(parts, book)) == 3
    assert "4 earlier not shown" in text_of(book)
    assert "not shown" not in text_of(timeline(entries, now=now, limit=7))


def test_empty_timeline_has_a_text(text_of, now):
    assert text_of(timeline([], now=now)) == "No events yet."


def test_each_day_has_one_heading(whole_story, parts, minute):
    tomorrow = minute(24 * 60)
    book = timeline(build_timeline(**whole_story), now=tomorrow)
    days = [p for p in parts(book) if getattr(p, "className", "") == "timeline-day"]
    assert [day.children for day in days] == ["yesterday"]


def test_ids_of_entries_are_stable_and_valid(whole_story, parts, now, create_alert):
    before = items(parts, timeline(build_timeline(**whole_story), now=now))
    newer = create_alert(attempt=2, firing_step=470, rule='a "rule". {odd}')
    whole_story["alerts"].append(newer)
    after = items(parts, timeline(build_timeline(**whole_story), now=now))
    assert [item.id for item in after[1:]] == [item.id for item in before]
    assert all(re.fullmatch(r"entry-[a-z0-9_-]+", item.id) for item in after)


def test_text_of_the_job_is_plain_text(create_alert, parts, text_of, now):
    alert = create_alert(rule=HOSTILE, series=HOSTILE, message=HOSTILE)
    marker = MarkerInfo(attempt=1, step=1, kind=MarkerKind.PHASE_CHANGE, text=HOSTILE, at=now)
    book = timeline(build_timeline(alerts=[alert], markers=[marker]), now=now)
    assert text_of(book).count(HOSTILE) >= 4
    kinds = {type(part).__name__ for part in parts(book)}
    assert not kinds & {"Markdown", "DangerouslySetInnerHTML", "A", "Img", "Iframe"}
