"""Actions on a page: proposals, commands by hand, mode, silences, arming."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

POLICY = """
rules:
  - name: loss_high
    doc: The loss is above ten.
    select: {metric: loss}
    detect: {threshold: {above: 10}}
    for: 2
    severity: divergence
policy:
  mode: propose
  ladder:
    - {rollback: {margin: 0, skip: 3}}
    - pause
  act_on: {any: ["severity:divergence"]}
  healthy_after: 5
  quiet: 3
  wait: 5
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 0, watch: 10}
"""
HIGH = 50.0


@pytest.fixture
def diverging(stack, request):
    """A run that has diverged, with a proposal on the table."""
    run = stack.feed(request.node.name[:150], policy=POLICY)
    run.frames(40)
    run.snapshot(30)
    run.frames(20)
    run.frames(4, loss=lambda step: HIGH)
    return run


def commands(run, *states):
    found = run.http.get(f"/runs/{run.run_id}/commands", params={"states": states}).json()
    assert isinstance(found, list), found
    return found


def audit(run):
    return run.http.get(f"/runs/{run.run_id}/audit", params={"limit": 500}).json()["entries"]


def confirm(page, button, reason):
    """Give the reason in the dialog that is open, and do it."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=button, exact=True).click()


class TestProposal:
    def test_from_proposal_through_approval_to_verified(self, diverging, open_page, charts):
        page = open_page(f"/runs/{diverging.run_id}")
        card = page.locator("#run-proposals .command-card")
        expect(card).to_contain_text("Roll back to step 30")
        expect(card).to_contain_text("healthy")
        expect(card).to_contain_text("34 steps")  # lost: from 64 back to 30
        expect(card).to_contain_text("192 samples")  # skipped: 3 steps of 64
        expect(page.locator("#run-incident")).to_contain_text("The loss is above ten")
        card.get_by_role("button", name="Approve").click()
        confirm(page, "Approve", "the curve says so")
        expect(page.locator("#run-proposals .command-card")).to_have_count(0)
        (pending,) = commands(diverging, "pending")
        answer = diverging.send()  # the job's next report fetches it
        assert [command["id"] for command in answer["commands"]] == [pending["id"]]
        expect(page.locator("#run-commands .command-card")).to_contain_text("delivered")
        diverging.rolled_back(pending, skipped_samples=192)
        expect(page.locator("#run-commands .command-card")).to_contain_text("verified")
        diverging.frames(60)
        charts.wait_for_step(page, 90)
        expect(page.locator("#timeline")).to_contain_text("the curve says so")
        expect(page.locator("#timeline")).to_contain_text("Applied: roll back to step 30")
        expect(page.locator("#run-past-incidents")).to_contain_text("intervention helped")
        person = [entry for entry in audit(diverging) if entry["actor"].startswith("person:")]
        assert [entry["message"] for entry in person] == ["the curve says so"]

    def test_rejected_it_is_never_sent(self, diverging, open_page):
        page = open_page(f"/runs/{diverging.run_id}")
        page.locator("#run-proposals").get_by_role("button", name="Reject").click()
        confirm(page, "Reject", "only a bad batch")
        expect(page.locator("#run-proposals .command-card")).to_have_count(0)
        expect(page.locator("#run-commands")).to_contain_text("only a bad batch")
        assert [command["state"] for command in commands(diverging)] == ["rejected"]
        assert diverging.send()["commands"] == []

    def test_without_a_reason_nothing_is_done(self, diverging, open_page):
        page = open_page(f"/runs/{diverging.run_id}")
        page.locator("#run-proposals").get_by_role("button", name="Approve").click()
        confirm(page, "Approve", "   ")
        expect(page.get_by_role("dialog")).to_contain_text("Enter a reason")
        assert len(commands(diverging, "proposed")) == 1

    def test_command_answered_elsewhere_shows_an_error(self, diverging, open_page):
        page = open_page(f"/runs/{diverging.run_id}")
        page.locator("#run-proposals").get_by_role("button", name="Approve").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Roll back to step 30")
        (proposed,) = commands(diverging, "proposed")
        diverging.http.post(f"/commands/{proposed['id']}/reject", json={"reason": "I was first"})
        confirm(page, "Approve", "too late")
        expect(dialog).to_contain_text("is rejected")

    def test_preview_is_updated_while_the_dialog_is_open(self, diverging, open_page):
        page = open_page(f"/runs/{diverging.run_id}")
        page.locator("#run-proposals").get_by_role("button", name="Approve").click()
        dialog = page.get_by_role("dialog")
        preview = dialog.locator(".form-preview")
        expect(preview).to_contain_text("34 steps")
        dialog.get_by_label("Reason").fill("let me think")
        diverging.frames(6, loss=lambda step: HIGH)
        pause = {"parameters": {"kind": "pause"}, "reason": "somebody else's"}
        given = diverging.http.post(f"/runs/{diverging.run_id}/commands", json=pause)
        assert given.status_code == 201
        expect(preview).to_contain_text("40 steps")
        expect(dialog.get_by_label("Reason")).to_have_value("let me think")

    def test_what_a_job_says_stays_text(self, stack, open_page):
        run = stack.feed("<img src=x onerror=alert(1)>")
        run.frames(30)
        run.send(markers=[{"kind": "phase_change", "step": 30, "text": "<b>plateau</b>"}])
        page = open_page(f"/runs/{run.run_id}")
        expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()
        expect(page.locator("#timeline")).to_contain_text("<b>plateau</b>")


class TestByHand:
    @pytest.fixture
    def run(self, stack, request):
        run = stack.feed(request.node.name[:150])
        run.frames(60)
        run.snapshot(20, 40)
        run.frames(60)
        return run

    def test_a_rollback_is_shown_before_it_is_given(self, run, open_page):
        page = open_page(f"/runs/{run.run_id}")
        page.get_by_role("button", name="Send command").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("step 20").check()
        dialog.get_by_label("Skip").fill("5")
        expect(dialog.locator(".form-preview")).to_contain_text("100 steps")
        expect(dialog.locator(".form-preview")).to_contain_text("320 samples")
        run.frames(10)
        note = {"mode": "observe", "reason": "in between"}
        assert run.http.patch(f"/runs/{run.run_id}", json=note).status_code == 200
        expect(dialog.locator(".form-preview")).to_contain_text("110 steps")
        confirm(page, "Send command", "the data from there on is bad")
        expect(dialog).not_to_be_visible()
        expect(page.locator("#run-commands")).to_contain_text("Roll back to step 20")
        (command,) = commands(run)
        assert command["parameters"]["target"]["step"] == 20
        assert command["parameters"]["skip_steps"] == 5
        assert command["message"] == "the data from there on is bad"

    def test_a_cut_is_read_back(self, run, open_page):
        page = open_page(f"/runs/{run.run_id}")
        page.get_by_role("button", name="Send command").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("radio", name=re.compile("^Reduce the learning rate")).check()
        expect(dialog.locator(".form-preview")).to_contain_text("0.0005")
        confirm(page, "Send command", "calmer")
        expect(dialog).not_to_be_visible()
        (command,) = run.send()["commands"]
        run.applied(command, lr={"decayed": 5e-4}, lr_scale=0.5)
        expect(page.locator("#run-commands .command-card")).to_contain_text("verified")

    def test_mismatch_is_shown(self, run, open_page):
        page = open_page(f"/runs/{run.run_id}")
        body = {"parameters": {"kind": "reduce_lr", "factor": 0.5}, "reason": "calmer"}
        assert run.http.post(f"/runs/{run.run_id}/commands", json=body).status_code == 201
        (command,) = run.send()["commands"]
        run.applied(command, lr={"decayed": 1e-3}, lr_scale=1.0)
        expect(page.locator("#run-commands .command-card")).to_contain_text("differs")

    def test_what_no_job_has_can_be_taken_back(self, run, open_page):
        page = open_page(f"/runs/{run.run_id}")
        body = {"parameters": {"kind": "pause"}, "reason": "look at it"}
        assert run.http.post(f"/runs/{run.run_id}/commands", json=body).status_code == 201
        page.locator("#run-commands").get_by_role("button", name="Cancel").click()
        confirm(page, "Cancel command", "never mind")
        expect(page.locator("#run-commands")).to_contain_text("cancelled")
        assert run.send()["commands"] == []

    def test_the_mode_is_switched_with_a_reason(self, run, open_page):
        page = open_page(f"/runs/{run.run_id}")
        page.get_by_role("button", name="Mode").click()
        page.get_by_role("dialog").get_by_label("auto").check()
        confirm(page, "Change mode", "it has proven itself")
        expect(page.locator("#run-header")).to_contain_text("auto")
        assert run.http.get(f"/runs/{run.run_id}").json()["mode"] == "auto"
        assert audit(run)[-1]["message"] == "it has proven itself"

    def test_a_rule_is_silenced_and_the_silence_ended(self, run, stack, open_page):
        page = open_page(f"/runs/{run.run_id}")
        page.get_by_role("button", name="Silence rule").click()
        confirm(page, "Silence rule", "a known jump")
        expect(page.get_by_role("dialog")).not_to_be_visible()
        (silence,) = run.http.get("/silences").json()
        assert (silence["run_id"], silence["reason"]) == (run.run_id, "a known jump")
        page.get_by_role("link", name="Control").click()
        page.locator("#control-silences").get_by_role("button", name="End silence").click()
        confirm(page, "End silence", "over")
        expect(page.locator("#control-silences")).to_contain_text("None")
        assert run.http.get("/silences").json() == []


def test_everything_is_disarmed_and_armed_again(stack, open_page):
    page = open_page("/control")
    page.get_by_role("button", name="Disarm all").click()
    confirm(page, "Disarm all", "hands off for the demo")
    expect(page.locator("#armed-badge")).to_contain_text("disarmed")
    expect(page.locator("#control-state")).to_contain_text("hands off for the demo")
    page.get_by_role("button", name="Arm", exact=True).click()
    confirm(page, "Arm", "demo is over")
    expect(page.locator("#armed-badge")).to_be_empty()


def test_a_press_on_the_page_of_the_switch_that_straddles_a_decision_counts(stack, open_page):
    page = open_page("/control")
    button = page.get_by_role("button", name="Disarm all")
    element = button.element_handle()
    run = stack.feed("noisy")
    expect(page.locator("#control-audit")).to_contain_text(run.run_id[:8])
    button.hover()
    page.mouse.down()
    change = {"mode": "observe", "reason": "in between"}
    assert run.http.patch(f"/runs/{run.run_id}", json=change).status_code == 200
    page.mouse.up()
    expect(page.get_by_role("dialog")).to_contain_text("The policy stops acting on all runs")
    page.keyboard.press("Escape")
    expect(page.locator("#control-audit")).to_contain_text("in between")
    assert element.evaluate("element => element.isConnected")
