from enum import StrEnum

import pytest

from dashboard.text import (
    actor_name,
    command_sentence,
    command_title,
    label,
    phrase,
    reason_phrase,
)
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    CommandKind,
    CommandState,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    ResumeParameters,
    RollbackParameters,
    SnapshotTarget,
    StopParameters,
)
from stabilizer.protocol.decisions import (
    AlertState,
    DecisionKind,
    DecisionReason,
    IncidentState,
    Mode,
    Severity,
)
from stabilizer.protocol.queries import AuditAction, AuditReason, RollbackRequest
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import PreviewWarning

ENUMS = (
    AlertState,
    AuditAction,
    AuditReason,
    CommandKind,
    CommandState,
    DecisionKind,
    DecisionReason,
    IncidentState,
    MarkerKind,
    Mode,
    PreviewWarning,
    RejectReason,
    RunState,
    Severity,
)
TARGET = SnapshotTarget(snapshot_id="a1-1200", attempt=1, step=1200)


def every_member() -> list[StrEnum]:
    return [member for kind in ENUMS for member in kind]


@pytest.mark.parametrize("member", every_member(), ids=lambda m: f"{type(m).__name__}.{m.name}")
def test_every_enum_member_has_a_phrase(member):
    words = phrase(member)
    assert words == words.strip()
    assert words[0].islower()
    assert not words.endswith((".", "!"))
    assert "_" not in words
    assert "_" not in label(member)


def test_no_two_reasons_of_one_kind_read_the_same():
    for kind in ENUMS:
        phrases = [phrase(member) for member in kind]
        assert len(set(phrases)) == len(phrases), kind


def test_sentence_of_a_rollback_with_skip_and_reduction():
    cut = ReduceLrParameters(factor=0.5, hold_steps=500)
    parameters = RollbackParameters(target=TARGET, skip_steps=200, reduce_lr=cut)
    assert command_sentence(parameters, global_batch=64) == (
        "roll back to step 1,200 (snapshot a1-1200), skip 200 steps of data (12,800 samples), "
        "multiply the learning rate by 0.5 for 500 steps"
    )


def test_sentence_of_a_plain_rollback():
    parameters = RollbackParameters(target=TARGET)
    assert command_sentence(parameters) == "roll back to step 1,200 (snapshot a1-1200)"
    assert command_title(parameters) == "roll back to step 1,200"


def test_skip_with_unknown_batch_is_in_steps_only():
    parameters = RollbackParameters(target=TARGET, skip_steps=1)
    assert command_sentence(parameters).endswith("skip 1 step of data")


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        (
            ReduceLrParameters(factor=0.75),
            "multiply the learning rate by 0.75 until changed",
        ),
        (
            ReduceLrParameters(factor=1e-06, hold_steps=1, ramp_steps=1000),
            "multiply the learning rate by 1e-06 for 1 step, then ramp back over 1,000 steps",
        ),
    ],
)
def test_sentence_of_a_reduction(cut, sentence):
    assert command_sentence(cut) == sentence


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (RollbackRequest(), "the newest healthy snapshot"),
        (RollbackRequest(to_step=1500), "the newest healthy snapshot up to step 1,500"),
        (RollbackRequest(snapshot_id="a1-9"), "snapshot a1-9"),
    ],
)
def test_sentence_of_a_requested_rollback(request_, where):
    assert command_sentence(request_) == f"roll back to {where}"


@pytest.mark.parametrize(
    "parameters",
    [PauseParameters(), ResumeParameters(), StopParameters(), CheckpointNowParameters()],
    ids=lambda parameters: parameters.kind.value,
)
def test_plain_commands_are_sentences_of_their_own(parameters):
    assert len(command_sentence(parameters).split()) > 3
    assert command_title(parameters) == phrase(parameters.kind)


def test_reason_phrase_of_any_enum():
    assert reason_phrase("relapse") == phrase(DecisionReason.RELAPSE)
    assert reason_phrase("superseded") == phrase(RejectReason.SUPERSEDED)
    assert reason_phrase("a_word_of_tomorrow") == "a word of tomorrow"


def test_actor_names():
    assert actor_name("person:anna") == "anna"
    assert actor_name("policy") == "the policy"
