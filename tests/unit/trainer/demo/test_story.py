from itertools import pairwise
from pathlib import Path

import pytest

from stabilizer.errors import ConfigurationError
from trainer.config import load_config
from trainer.demo.options import PROTECTED, UNDISTURBED, DemoOptions
from trainer.demo.processes import Processes, ProcessFailedError
from trainer.demo.story import job_arguments, policy_file

OPTIONS = DemoOptions(out=Path("/tmp/nowhere"), seed=3, steps=400)


def settings(arguments):
    return [value for name, value in pairwise(arguments) if name == "--set"]


def test_a_disturbed_arm_gets_its_faults_in_samples_and_steps():
    config = load_config(
        OPTIONS.preset, settings(job_arguments(PROTECTED, OPTIONS, "http://127.0.0.1:1"))
    )
    bad, restart = config.faults["bad_documents"], config.faults["lr_restart"]
    assert bad.first_sample == 120 * config.data.batch_size
    assert bad.samples == 4 * config.data.batch_size
    assert (restart.step, restart.factor) == (220, 30.0)


def test_an_undisturbed_arm_differs_in_nothing_but_faults_mode_and_names():
    arguments = job_arguments(UNDISTURBED, OPTIONS, "http://127.0.0.1:1")
    assert settings(arguments) == []
    disturbed = job_arguments(PROTECTED, OPTIONS, "http://127.0.0.1:1")
    different = {(a, b) for a, b in zip(arguments, disturbed, strict=False) if a != b}
    assert {a for a, _ in different} == {"demo-3-undisturbed", "/tmp/nowhere/undisturbed"}


def test_the_policy_stands_beside_the_preset():
    assert policy_file(OPTIONS.preset).is_file()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**32}, {"steps": 10}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        DemoOptions(out=Path("/tmp/nowhere"), **wrong)


def test_a_process_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    with (
        Processes(tmp_path) as processes,
        pytest.raises(ProcessFailedError, match="No module named"),
    ):
        processes.run("broken", "no_such_module", [], timeout=30)


def test_children_end_with_the_demo(tmp_path):
    with Processes(tmp_path) as processes:
        child = processes.start("server", "http.server", ["0", "--bind", "127.0.0.1"])
        assert child.is_running
    assert not child.is_running


def test_a_process_that_never_gets_ready_is_reported(tmp_path):
    with Processes(tmp_path) as processes:
        child = processes.start("quick", "platform", [])
        with pytest.raises(ProcessFailedError, match="ended with status"):
            processes.wait_for_file(child, tmp_path / "ready", timeout=30)
