import json
import math
import re

import pytest

from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import DecisionKind, DecisionReason
from trainer.demo.options import Disturbances
from trainer.demo.plot import draw, draw_svg, write_page
from trainer.demo.report import (
    ArmOutcome,
    Curve,
    build_report,
    steps_lost,
    steps_to_action,
    verdict,
    weightiest,
)

DISTURBANCES = Disturbances(bad_from=150, bad_steps=6, restart_at=275)


def outcome(final, alerts=(), incidents=(), commands=()):
    curve = Curve(steps=(1, 2), losses=(5.0, final))
    return ArmOutcome(
        curve=curve, final_loss=final, alerts=alerts, incidents=incidents, commands=commands
    )


@pytest.fixture
def arms(make):
    return {
        "undisturbed": outcome(1.0),
        "unprotected": outcome(4.0, alerts=[make.alert()]),
        "protected": outcome(
            1.01,
            [make.alert()],
            [make.incident(first_step=280)],
            [make.cut(), make.rollback(id="d")],
        ),
    }


def failed(arms):
    return [
        number for number, check in enumerate(verdict(arms, DISTURBANCES), 1) if not check.passed
    ]


class TestVerdict:
    def test_the_whole_story_passes(self, arms):
        assert failed(arms) == []

    @pytest.mark.parametrize("loss", [1.06, 0.9, math.nan, math.inf])
    def test_protected_must_end_where_undisturbed_does(self, arms, make, loss):
        arms["protected"] = outcome(loss, [make.alert()], (), [make.rollback()])
        assert failed(arms) == [1]

    def test_unprotected_must_be_harmed(self, arms):
        arms["unprotected"] = outcome(1.19)
        assert failed(arms) == [2]

    def test_a_nan_is_harm(self, arms):
        arms["unprotected"] = outcome(math.nan)
        assert failed(arms) == []

    def test_a_nan_base_proves_nothing(self, arms):
        arms["undisturbed"] = outcome(math.nan)
        assert failed(arms) == [1, 2]

    def test_a_rejected_rollback_is_none(self, arms, make):
        rejected = make.rollback(state=CommandState.REJECTED)
        arms["protected"] = outcome(1.0, [make.alert()], (), [rejected])
        assert failed(arms) == [3]

    def test_bad_documents_need_an_alert(self, arms, make):
        late = make.alert(firing_step=290)
        arms["protected"] = outcome(1.0, [late], (), [make.rollback()])
        assert failed(arms) == [4]

    def test_bad_documents_need_no_command(self, arms, make):
        early = make.cut(applied_step=160)
        arms["protected"] = outcome(1.0, [make.alert()], (), [early, make.rollback()])
        assert failed(arms) == [4]

    def test_undisturbed_is_left_alone_even_if_a_command_was_refused(self, arms, make):
        arms["undisturbed"] = outcome(1.0, commands=[make.cut(state=CommandState.REJECTED)])
        assert failed(arms) == [5]


def test_report_is_json_without_nan(arms, make):
    arms["unprotected"] = outcome(math.inf)
    checks = verdict(arms, DISTURBANCES)
    report = json.loads(
        json.dumps(build_report(arms, checks, seed=0, seconds=1.0, final_steps=50), allow_nan=False)
    )
    assert report["arms"]["unprotected"]["final_loss"] is None
    assert report["arms"]["protected"]["losses"] == [5.0, 1.01]
    assert [command["kind"] for command in report["commands"]] == ["reduce_lr", "rollback"]
    assert report["commands"][1]["read_back"]["step"] == 250
    assert report["incidents"][0]["rule"] == "loss_spike"
    assert report["steps_lost"] == 50
    assert report["passed"]


def test_steps_lost_counts_applied_rollbacks_only(make):
    assert steps_lost([make.cut(), make.rollback(), make.rollback(state=CommandState.FAILED)]) == 50


def test_steps_to_action_is_from_the_first_precursor(make):
    found = outcome(1.0, (), [make.incident(first_step=280)], [make.cut(applied_step=290)])
    assert steps_to_action(found) == 10


def test_steps_to_action_without_action_is_unknown():
    assert steps_to_action(outcome(1.0)) is None


def test_the_decision_shown_is_the_one_with_most_consequence(make):
    incident = make.incident(
        make.decision(),
        make.decision(DecisionKind.ACT, DecisionReason.PRECURSOR_CONFIRMED),
        make.decision(DecisionKind.RESOLVE, DecisionReason.INTERVENTION_HELPED),
    )
    assert weightiest(incident) == ("act", "precursor_confirmed")


def test_plot_is_a_picture_whatever_the_losses(arms, tmp_path):
    arms["unprotected"] = outcome(math.nan)
    draw(arms, DISTURBANCES, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


class TestPage:
    @pytest.fixture
    def page(self, arms, tmp_path):
        def write():
            checks = verdict(arms, DISTURBANCES)
            report = build_report(arms, checks, seed=7, seconds=12.3, final_steps=100)
            path = tmp_path / "report.html"
            write_page(path, report, checks, arms, draw_svg(arms, DISTURBANCES))
            return path.read_text()

        return write

    def test_it_holds_picture_table_verdict_and_story(self, page):
        text = page()
        assert "<svg" in text
        assert "The loop closed" in text
        assert "disturbed, protected" in text
        assert "rollback to step 250" in text
        assert "rule loss_spike (notice)" in text
        assert "Nothing was seen, nothing was done." in text  # of the undisturbed arm

    def test_it_needs_nothing_else(self, page):
        text = page()
        fetched = re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)([^\"']+)|@import|url\((?!#)", text)
        assert fetched == []

    def test_what_jobs_say_stays_text(self, arms, make, page):
        rule = "<script>alert(1)</script>"
        arms["protected"] = outcome(1.01, [make.alert(rule=rule)], (), [make.rollback()])
        text = page()
        assert rule not in text
        assert "&lt;script&gt;" in text

    def test_a_loss_that_is_not_finite_is_reported(self, arms, page):
        arms["protected"] = outcome(math.nan)
        text = page()
        assert "not finite" in text
        assert "The loop did not close" in text
