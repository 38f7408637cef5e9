"""The pages before anything is known, and with all their parts: all is there, nothing twice."""

import json
from collections import Counter
from datetime import UTC, datetime

import pytest
from plotly.utils import PlotlyJSONEncoder
from pydantic import SecretStr

from dashboard import ids, pages
from dashboard.actions import answer, arming, end_silence, mode, send_command, silence
from dashboard.actions.answer import Verb
from dashboard.app.factory import create_app
from dashboard.components.command_card import command_card
from dashboard.pages.control import silence_list, switch_card
from dashboard.pages.run import run_header, run_place
from dashboard.settings import load_dashboard_settings
from dashboard.visitor import Visitor, visited_by
from stabilizer.clock import SystemClock
from stabilizer.protocol.commands import Command, PauseParameters
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.queries import ControlState, Silence
from stabilizer.protocol.runs import Run

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ON_LOOPBACK = Visitor(name="ada")
SIGNED_IN = Visitor(name="grace <b>", token=SecretStr("t" * 43), session="s" * 43)
VISITORS = {"nobody": None, "on loopback": ON_LOOPBACK, "signed in": SIGNED_IN}
PAGES = {
    "runs": pages.runs,
    "run": lambda: pages.run(run_id="a%2Fb"),
    "run without an id": pages.run,
    "control": pages.control,
    "not found": pages.not_found,
}


@pytest.fixture(scope="module", autouse=True)
def dashboard():
    """The frame has a place for the pages of an app: there must be one."""
    return create_app(load_dashboard_settings(person="ada"), SystemClock())


def sent(component):
    """What the browser gets."""
    return json.loads(json.dumps(component, cls=PlotlyJSONEncoder, allow_nan=False))


def ids_of(part):
    """All ids within, as text."""
    if isinstance(part, dict):
        if "props" in part and "namespace" in part and "id" in part["props"]:
            yield json.dumps(part["props"]["id"], sort_keys=True)
        for one in part.values():
            yield from ids_of(one)
    elif isinstance(part, list):
        for one in part:
            yield from ids_of(one)


def command(number):
    return Command(
        id=f"c{number}",
        run_id="r1",
        attempt=1,
        parameters=PauseParameters(),
        state="proposed",
        reason="divergence",
        issued_at=NOW,
        expires_at=NOW,
    )


def run_parts():
    """What callbacks put into the page of a run, every dialog open."""
    run = Run(
        id="r1",
        name="n",
        key="k",
        state="running",
        mode="auto",
        attempt=1,
        step=5,
        world_size=1,
        global_batch=None,
        git_revision=None,
        rules_hash="h",
        config={},
        created_at=NOW,
        last_seen_at=NOW,
        open_incident_id=None,
    )
    return [
        run_header(run),
        run_place(run, NOW),
        *(command_card(command(number), now=NOW) for number in (1, 2)),
        answer.answer_form(Verb.APPROVE, command(1)),
        send_command.command_form(()),
        mode.mode_form(Mode.AUTO),
        silence.silence_form(["a"], 5),
    ]


def control_parts():
    silences = tuple(
        Silence(
            id=f"s{number}",
            rule="*",
            run_id=None,
            until_step=None,
            until=NOW,
            reason="r",
            actor="person:ada",
            created_at=NOW,
        )
        for number in (1, 2)
    )
    state = ControlState(disarmed=False, reason="", actor="", changed_at=None, silences=silences)
    return [
        switch_card(state, NOW),
        silence_list(silences, NOW),
        arming.arming_form(disarmed=False),
        end_silence.end_form(),
    ]


PARTS = {"run": run_parts, "control": control_parts}


@pytest.mark.parametrize("visitor", VISITORS.values(), ids=VISITORS)
@pytest.mark.parametrize("name", PAGES)
def test_ids_are_unique_on_every_page(name, visitor):
    with visited_by(visitor):
        whole = [pages.shell(visitor), PAGES[name](), *PARTS.get(name, list)()]
    counts = Counter(ids_of(sent(whole)))
    assert {found for found, count in counts.items() if count > 1} == set()
    assert json.dumps(ids.BANNER) in counts


@pytest.mark.parametrize("name", PAGES)
def test_page_is_built_for_each_request(name):
    first, second = PAGES[name](), PAGES[name]()
    assert first is not second
    assert sent(first) == sent(second)


def test_all_ids_that_there_are_have_a_place_on_some_page():
    whole = [pages.shell(ON_LOOPBACK), pages.runs(), pages.run(), pages.control()]
    found = set(ids_of(sent([whole, run_parts(), control_parts()])))
    named = {
        value for name, value in vars(ids).items() if name.isupper() and isinstance(value, str)
    }
    # Types of pattern-matching ids are not ids by themselves.
    types = {ids.APPROVE, ids.REJECT, ids.CANCEL, ids.END_SILENCE, ids.RUN_ROW, ids.PREVIEW}
    assert {name for name in named if json.dumps(name) not in found} == types


@pytest.mark.parametrize(
    "form",
    [one.FORM for one in (answer, arming, end_silence, mode, send_command, silence)],
    ids=lambda form: form.dialog,
)
def test_a_form_has_all_the_fields_that_it_is_asked_for(form):
    found = set(ids_of(sent([run_parts(), control_parts(), pages.run(), pages.control()])))
    fields = {getattr(form, name) for name in form.__dataclass_fields__}
    assert {name for name in fields if json.dumps(name) not in found} == set()


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("abc", "abc"),
        ("a%2Fb%20c", "a/b c"),
        ("%3Cscript%3E", "<script>"),
        ("%", "%"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_page_of_a_run_knows_whose_it_is(address, known):
    page = sent(pages.run(run_id=address))
    stores = {
        one["props"]["id"]: one["props"].get("data")
        for one in page["props"]["children"]
        if one["type"] == "Store"
    }
    assert stores[ids.RUN_ID] == known
    assert stores[ids.PANEL_NAMES] == list(ids.PANELS)


class TestFrame:
    def text_of(self, visitor):
        return json.dumps(sent(pages.shell(visitor)))

    def test_anonymous_visitor_gets_a_sign_in_link(self):
        assert "/signin" in self.text_of(None)

    def test_who_need_not_sign_in_cannot_sign_out(self):
        text = self.text_of(ON_LOOPBACK)
        assert "ada" in text
        assert "/signout" not in text

    def test_who_has_signed_in_can_sign_out_and_the_token_stays_here(self):
        text = self.text_of(SIGNED_IN)
        assert "grace <b>" in text
        assert "/signout" in text
        assert "t" * 43 not in text
        assert "s" * 43 not in text
