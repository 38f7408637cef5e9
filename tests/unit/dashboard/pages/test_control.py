from datetime import timedelta

import pytest
from dash import dcc
from dash.development.base_component import Component

from dashboard import ids
from dashboard.pages.control import armed_badge, audit_list, silence_list, switch_card
from stabilizer.protocol.queries import (
    AuditAction,
    AuditReason,
    ControlState,
    Silence,
)

HTML = '<img src=x onerror=alert(1)> & "it\'s"'


def ids_in(parts, node):
    return [part.id for part in parts(node) if getattr(part, "id", None) is not None]


def links(parts, node):
    return [part.href for part in parts(node) if isinstance(part, dcc.Link)]


@pytest.fixture
def create_control(minute):
    def create(**override):
        fields = {
            "disarmed": True,
            "reason": "a fire in hall 3",
            "actor": "person:ada",
            "changed_at": minute(25),
        }
        return ControlState(**fields | override)

    return create


@pytest.fixture
def create_silence(minute):
    def create(**override):
        fields = {
            "id": "s1",
            "rule": "loss_diverging",
            "run_id": "r1",
            "until_step": None,
            "until": minute(90),
            "reason": "known",
            "actor": "person:ada",
            "created_at": minute(20),
        }
        return Silence(**fields | override)

    return create


class TestSwitch:
    def test_armed_card_offers_to_disarm(self, create_control, now, parts, text_of):
        card = switch_card(create_control(disarmed=False), now)
        assert "Armed:" in text_of(card)
        assert "Disarm all" in text_of(card)
        assert ids_in(parts, card) == [ids.OPEN_ARMING]

    def test_disarmed_card_names_actor_and_reason_and_offers_to_arm(
        self, create_control, now, parts, text_of
    ):
        card = switch_card(create_control(), now)
        text = text_of(card)
        assert "Disarmed: the policy acts on no run" in text
        assert "ada,  5 min ago : a fire in hall 3" in text
        assert ids_in(parts, card) == [ids.OPEN_ARMING]

    def test_initial_state_names_no_user(self, create_control, now, text_of):
        state = create_control(disarmed=False, reason="", actor="", changed_at=None)
        assert "ago" not in text_of(switch_card(state, now))
        assert "the :" not in text_of(switch_card(state, now))

    def test_disarmed_badge_links_to_the_control_page(self, create_control, parts, text_of):
        badge = armed_badge(create_control())
        assert text_of(badge) == "disarmed"
        assert links(parts, badge) == ["/control"]
        titles = [getattr(part, "title", None) for part in parts(badge)]
        assert "ada: a fire in hall 3" in titles

    def test_armed_state_has_no_badge(self, create_control):
        assert armed_badge(create_control(disarmed=False)) is None


class TestSilences:
    def test_no_silences_have_a_hint(self, now, text_of):
        assert "None." in text_of(silence_list([], now))

    def test_each_silence_shows_rule_run_end_and_button(self, create_silence, now, parts, text_of):
        listed = silence_list(
            [create_silence(), create_silence(id="s2", until=None, until_step=12_000)], now
        )
        text = text_of(listed)
        assert "ends in  1 h" in text
        assert "until step 12,000" in text
        assert "ada,  10 min ago : known" in text
        assert links(parts, listed) == ["/runs/r1", "/runs/r1"]
        assert ids_in(parts, listed) == [
            {"type": ids.END_SILENCE, "id": "s1"},
            {"type": ids.END_SILENCE, "id": "s2"},
        ]

    def test_silence_of_all_runs_has_no_link(self, create_silence, now, parts, text_of):
        listed = silence_list([create_silence(rule="*", run_id=None)], now)
        assert "all rules" in text_of(listed)
        assert "on all runs" in text_of(listed)
        assert links(parts, listed) == []

    def test_silence_that_has_just_ended(self, create_silence, now, text_of):
        listed = silence_list([create_silence(until=now - timedelta(seconds=1))], now)
        assert "ends in  a moment" in text_of(listed)

    def test_an_end_at_step_zero_is_a_step(self, create_silence, now, text_of):
        listed = silence_list([create_silence(until=None, until_step=0)], now)
        assert "until step 0" in text_of(listed)


class TestAudit:
    def test_empty_log_has_a_text(self, now, text_of):
        assert text_of(audit_list([], now, 10)) == "No entries yet."

    def test_log_is_newest_first_and_limited(self, create_audit, now, text_of):
        entries = [
            create_audit(AuditAction.DISARMED, actor="person:ada", message=f"reason {number}.")
            for number in range(1, 21)
        ]
        text = text_of(audit_list(entries, now, 5))
        told = [f"reason {number}." for number in range(1, 21) if f"reason {number}." in text]
        assert told == [f"reason {number}." for number in range(16, 21)]
        assert text.index("reason 20.") < text.index("reason 19.")

    def test_changes_of_state_and_mode_are_shown(self, create_audit, now, text_of):
        changed = create_audit(
            AuditAction.RUN_MODE_CHANGED, before={"mode": "auto"}, after={"mode": "observe"}
        )
        created = create_audit(AuditAction.COMMAND_CREATED, after={"state": "proposed"})
        other = create_audit(AuditAction.SILENCE_CREATED, after={"rule": "r", "run_id": None})
        text = text_of(audit_list([changed, created, other], now, 10))
        assert "(auto \u2192 observe)" in text
        assert "(proposed)" in text
        assert text.count("(") == 2

    def test_entry_has_run_actor_and_reason(self, create_audit, now, parts, text_of):
        entry = create_audit(
            AuditAction.RUN_DELETED,
            run_id="a/b?c",
            actor="person:ada",
            reason=AuditReason.REQUESTED_BY_PERSON,
            message="no longer needed",
        )
        listed = audit_list([entry], now, 10)
        assert links(parts, listed) == ["/runs/a%2Fb%3Fc"]
        assert "ada:" in text_of(listed)
        assert "no longer needed" in text_of(listed)

    def test_entry_without_a_run_has_no_link(self, create_audit, now, parts):
        listed = audit_list([create_audit(AuditAction.ARMED, run_id=None)], now, 10)
        assert links(parts, listed) == []

    @pytest.mark.parametrize("action", list(AuditAction))
    def test_every_action_has_a_text(self, create_audit, now, text_of, action):
        text = text_of(audit_list([create_audit(action)], now, 10))
        assert text[0].isupper()
        assert "_" not in text


@pytest.mark.parametrize("reason", [HTML, "word " * 400, "x" * 2000, "one\ntwo", "\u202eback"])
def test_text_of_users_is_plain_text(
    create_control, create_silence, create_audit, now, parts, reason
):
    shown = [
        switch_card(create_control(reason=reason), now),
        silence_list([create_silence(reason=reason, rule=reason)], now),
        audit_list([create_audit(AuditAction.DISARMED, message=reason)], now, 10),
    ]
    for part in shown:
        texts = [one for one in parts(part) if not isinstance(one, Component)]
        assert any(reason in text for text in texts)
        kinds = {type(one).__name__ for one in parts(part) if isinstance(one, Component)}
        assert not kinds & {"Markdown", "DangerouslySetInnerHTML", "Iframe"}
