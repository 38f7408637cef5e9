"""Faults as Lightning's callbacks, although their classes load without Lightning."""

import copy
import pickle
from dataclasses import replace

import pytest
from lightning.pytorch import Callback, Trainer

from trainer.faults import FlippedWeights, FreshWeights, NanGradient, SlowRank, read_faults

FAULTS = [
    NanGradient(step=3, module="head"),
    SlowRank(step=3, steps=2),
    FlippedWeights(step=3, seed=1),
    FreshWeights(module="head"),
]
by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


@by_name
def test_a_fault_is_a_callback_of_any_trainer(fault):
    assert isinstance(fault, Callback)
    trainer = Trainer(callbacks=[fault], logger=False, enable_checkpointing=False)
    assert fault in trainer.callbacks
    assert fault.state_key == type(fault).__name__


@by_name
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda fault: pickle.loads(pickle.dumps(fault)), replace],
    ids=["copy", "deepcopy", "pickle", "replace"],
)
def test_a_copy_is_the_same_callback(fault, copied):
    other = copied(fault)
    assert isinstance(other, Callback)
    assert (type(other), other) == (type(fault), fault)
    assert vars(other) == vars(fault)


def test_a_configured_fault_is_the_callback_that_code_would_create():
    faults = read_faults({"nan_gradient": {"step": 3, "module": "head"}, "slow_rank": None})
    assert faults == {"nan_gradient": NanGradient(step=3, module="head")}
    assert isinstance(faults["nan_gradient"], Callback)
    assert isinstance(faults["nan_gradient"], NanGradient)
