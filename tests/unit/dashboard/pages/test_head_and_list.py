"""The head of a run's page and the rows of the list of runs."""

from datetime import timedelta

import dash_mantine_components as dmc
import pytest
from dash import dcc, html

from dashboard import ids
from dashboard.pages.run import run_header, run_place
from dashboard.pages.runs import row_name, run_cells, run_row, runs_table
from stabilizer.protocol.commands import PauseParameters
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, IncidentState, Severity
from stabilizer.protocol.runs import Run, RunState
from stabilizer.protocol.views import IncidentHead, RunSummary

HTML = "<b>night</b> shift & 'co'"


@pytest.fixture
def create_run(now):
    def create(**override):
        fields = {
            "id": "0123456789abcdef",
            "name": "idefics",
            "key": "job-7",
            "state": "running",
            "mode": "propose",
            "attempt": 3,
            "step": 12_345,
            "world_size": 512,
            "global_batch": 2048,
            "git_revision": "0f" * 20,
            "rules_hash": "h",
            "config": {},
            "created_at": now - timedelta(days=3),
            "last_seen_at": now - timedelta(seconds=40),
            "open_incident_id": None,
        }
        return Run(**fields | override)

    return create


@pytest.fixture
def buttons(parts):
    return lambda node: {part.id: part for part in parts(node) if isinstance(part, dmc.Button)}


class TestHead:
    def test_header_names_the_run_and_its_facts(self, create_run, text_of):
        text = text_of(run_header(create_run()))
        known = ("idefics", "job-7", "id 01234567", "512 ranks", "2,048 samples per step")
        for word in (*known, "revision 0f0f0f0f0f0f", "running", "propose"):
            assert word in text

    def test_unknown_facts_are_omitted(self, create_run, text_of):
        run = create_run(key="", world_size=1, global_batch=None, git_revision=None)
        text = text_of(run_header(run))
        for word in ("None", "ranks", "samples", "revision"):
            assert word not in text

    def test_a_job_that_cannot_be_rewound_says_why(self, create_run, text_of):
        run = create_run(rewind="none", rewind_reason="the data is read only once")
        assert "cannot be rolled back: the data is read only once" in text_of(run_header(run))
        for rewind in ("exact", None):
            assert "rolled back" not in text_of(run_header(create_run(rewind=rewind)))

    @pytest.mark.parametrize("state", list(RunState))
    def test_only_a_run_that_has_ended_takes_no_command(self, create_run, buttons, state):
        found = buttons(run_header(create_run(state=state)))
        assert set(found) == {ids.OPEN_SEND, ids.OPEN_MODE, ids.OPEN_SILENCE}
        has_ended = state in (RunState.FINISHED, RunState.FAILED)
        assert bool(getattr(found[ids.OPEN_SEND], "disabled", False)) == has_ended

    def test_header_does_not_change_with_the_step(self, create_run, now):
        heads = [repr(run_header(create_run(step=step, last_seen_at=now))) for step in (100, 101)]
        assert heads[0] == heads[1]

    def test_place_shows_step_attempt_and_last_seen(self, create_run, now, text_of):
        text = text_of(run_place(create_run(), now))
        assert " ".join(text.split()) == "step 12,345 , attempt 3, last seen 40 s ago"

    def test_place_shows_the_phase_once_it_is_known(self, create_run, now, text_of):
        text = text_of(run_place(create_run(phase="diverging"), now))
        assert "attempt 3, loss diverging, last seen" in " ".join(text.split())


class TestRows:
    @pytest.fixture
    def row_of(self, create_run, now):
        def build(picture=None, run=None, **given):
            summary = RunSummary(run=create_run(**run or {}), **given)
            cells = run_cells(summary, now, picture or html.Img(alt="no loss yet"))
            return run_row(7, cells, row_name(summary))

        return build

    def test_a_run_without_a_history_has_every_cell(self, row_of, parts):
        row = row_of()
        cells = [part for part in parts(row) if isinstance(part, html.Td)]
        (head,) = [part for part in parts(runs_table([row])) if isinstance(part, html.Thead)]
        names = [cell.to_plotly_json()["props"]["data-label"] for cell in cells]
        assert names == [part.children for part in parts(head) if isinstance(part, html.Th)]
        assert row.className == ""
        assert row.id == {"type": ids.RUN_ROW, "place": 7}

    @pytest.mark.parametrize(
        ("count", "said"), [(1, "Approval needed"), (3, "Approval needed (3)")]
    )
    def test_proposed_commands_mark_their_run(self, row_of, text_of, count, said):
        row = row_of(num_proposed=count)
        assert row.className == "needs-approval"
        assert said in text_of(row)

    def test_incident_shows_its_first_rule_and_step(self, row_of, text_of, now):
        head = IncidentHead(
            id="i1",
            number=1,
            state=IncidentState.OPEN,
            severity=Severity.DIVERGENCE,
            decision=DecisionKind.WAIT,
            reason=DecisionReason.MAY_RECOVER,
            rules=("loss_diverging", "b", "c"),
            opened_step=2000,
            first_step=1990,
        )
        assert "loss diverging and 2 more, since step 1,990" in text_of(row_of(incident=head))
        nameless = head.model_copy(update={"rules": ()})
        assert "no rule, since step 1,990" in text_of(row_of(incident=nameless))

    def test_last_intervention_shows_its_applied_step(
        self, row_of, text_of, create_applied, create_command
    ):
        applied = create_applied(parameters=PauseParameters(), applied_step=314)
        assert "at step 314" in text_of(row_of(last_intervention=applied))
        assert "at step 312" in text_of(row_of(last_intervention=create_command()))
        unknown = create_command(issued_step=None)
        assert "at step" not in text_of(row_of(last_intervention=unknown))

    def test_names_are_text_and_addresses_are_quoted(self, row_of, parts):
        row = row_of(run={"id": "a/b c", "name": HTML, "key": HTML})
        (link,) = [part for part in parts(row) if isinstance(part, dcc.Link)]
        assert (link.children, link.href) == (HTML, "/runs/a%2Fb%20c")

    def test_phase_is_shown_verbatim(self, row_of, text_of):
        assert HTML in text_of(row_of(phase=HTML))
