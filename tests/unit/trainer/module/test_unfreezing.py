import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from trainer.config import OptimizerConfig, UnfreezeConfig
from trainer.module import IdeficsModule, build_model
from trainer.module.parts import UnfreezeSchedule, learners

FROZEN = ["language_layers", "language_norms", "embeddings", "vision"]
STEPS = 8


def document(index):
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(2, 52, (8,), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones(8, dtype=torch.int64),
        "labels": ids,
        "pixel_values": torch.randn(1, 3, 8, 8, generator=generator),
        "image_attention_mask": torch.ones(8, 1, dtype=torch.int64),
    }


class Documents:
    """Batches of two documents, from wherever it stands; a length, so that none is prefetched."""

    def __init__(self):
        self.samples = 0

    def state_dict(self):
        return {"samples": self.samples}

    def load_state_dict(self, state):
        self.samples = state["samples"]

    def __len__(self):
        return 100

    def __iter__(self):
        while self.samples < 200:
            pair = [document(self.samples), document(self.samples + 1)]
            self.samples += 2
            yield {name: torch.stack([each[name] for each in pair]) for name in pair[0]}


class Job:
    def __init__(self):
        self.phases = []
        self.trainer = None

    def log(self, name, value, **labels):
        pass

    def phase(self, text):
        self.phases.append((self.trainer.global_step, text))


class Watch(pl.Callback):
    """Losses, and a copy of the weights after every step."""

    def __init__(self):
        self.losses, self.weights, self.moments = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append((trainer.global_step, float(outputs["loss"])))
        self.weights.append({n: p.detach().clone() for n, p in module.model.named_parameters()})
        self.moments.append(len(trainer.optimizers[0].state))


@pytest.fixture
def fit(model_config, tmp_path):
    """Return a function that trains a small model and gives what was seen of it."""

    def run(*changes, steps=STEPS, resume=None, save=None, **options):
        torch.manual_seed(0)
        config = model_config(freeze=FROZEN, gate_initializer="ones", unfreeze=list(changes))
        module = IdeficsModule(
            build_model(config),
            OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            steps=STEPS,
            unfreeze=config.unfreeze,
        )
        watch, job = Watch(), Job()
        module.stabilizer_job = job
        trainer = job.trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=steps,
            enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
            callbacks=[watch], **options,
        )  # fmt: skip
        trainer.fit(module, Documents(), ckpt_path=resume)
        if save is not None:
            trainer.save_checkpoint(tmp_path / save)
        return SimpleNamespace(
            module=module, trainer=trainer, job=job, **vars(watch), path=tmp_path / str(save)
        )

    return run


def moved(ran, part, before, after):
    """Whether a part's weights differ between the ends of two steps."""
    names = {id(p): name for name, p in ran.module.model.named_parameters()}
    chosen = [names[id(p)] for p in learners(ran.module.model, [part])]
    first, second = ran.weights[before - 1], ran.weights[after - 1]
    return any(not torch.equal(first[name], second[name]) for name in chosen)


def test_a_part_keeps_its_weights_until_its_step_and_moves_from_there_on(fit):
    ran = fit({"step": 3, "parts": ["language_norms"]}, {"step": 5, "parts": ["vision"]})
    assert not moved(ran, "language_norms", 1, 3)
    assert moved(ran, "language_norms", 3, 4)
    assert not moved(ran, "vision", 1, 5)
    assert moved(ran, "vision", 5, 6)
    assert not moved(ran, "embeddings", 1, STEPS)
    assert moved(ran, "gates", 1, 2)


def test_until_then_it_is_the_run_without_the_schedule_to_a_bit(fit):
    ran, twin = fit({"step": 4, "parts": ["language_layers"]}), fit()
    assert ran.losses[:5] == twin.losses[:5]  # the fifth is computed before the first move
    assert ran.losses[5:] != twin.losses[5:]
    assert twin.job.phases == []


def test_moments_begin_with_the_part_and_groups_never_change(fit):
    ran = fit({"step": 4, "parts": ["language_norms"]})
    optimizer = ran.trainer.optimizers[0]
    late = list(learners(ran.module.model, ["language_norms"]))
    assert ran.moments[3] + len(late) == ran.moments[4]
    assert {float(optimizer.state[p]["step"]) for p in late} == {STEPS - 4}
    early = next(learners(ran.module.model, ["gates"]))
    assert float(optimizer.state[early]["step"]) == STEPS
    at_start = fit({"step": 4, "parts": ["language_norms"]}, steps=1).trainer.optimizers[0]
    sizes = [[len(group["params"]) for group in o.param_groups] for o in (optimizer, at_start)]
    assert sizes[0] == sizes[1]


def test_the_phase_is_reported_once_with_its_parts(fit):
    ran = fit(
        {"step": 3, "parts": ["vision", "language_norms"]},
        {"step": 6, "parts": ["embeddings"]},
        accumulate_grad_batches=2,
    )
    assert ran.job.phases == [
        (3, "unfrozen: language_norms, vision"),
        (6, "unfrozen: embeddings"),
    ]


def test_microbatches_of_a_step_learn_alike(fit):
    ran = fit({"step": 2, "parts": ["vision"]}, steps=3, accumulate_grad_batches=2)
    # Weights after the microbatches 1 to 6: they move with every second one.
    assert not moved(ran, "vision", 1, 5)
    assert moved(ran, "vision", 5, 6)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_continues_as_the_unbroken_one(fit, stop):
    change = {"step": 3, "parts": ["language_norms", "vision"]}
    unbroken = fit(change)
    stopped = fit(change, steps=stop, save="stopped.ckpt")
    resumed = fit(change, resume=str(stopped.path))
    last, expected = resumed.weights[-1], unbroken.weights[-1]
    assert all(torch.equal(last[name], value) for name, value in expected.items())
    assert [step for step, _ in resumed.job.phases] == ([3] if stop <= 3 else [])


def test_a_run_on_a_plateau_can_go_on_with_parts_that_its_checkpoint_knows_nothing_of(fit):
    stopped = fit(steps=5, save="stopped.ckpt")
    ran = fit({"step": 6, "parts": ["vision"]}, resume=str(stopped.path))
    assert ran.job.phases == [(6, "unfrozen: vision")]
    assert not moved(ran, "vision", 1, 1)
    assert moved(ran, "vision", 1, 2)  # the first step here is the sixth of the run
    optimizer = ran.trainer.optimizers[0]
    steps = {name: {float(optimizer.state[p]["step"])
                    for p in learners(ran.module.model, [name]) if p in optimizer.state}
             for name in ("vision", "gates")}  # fmt: skip
    assert steps == {"vision": {STEPS - 6}, "gates": {STEPS}}


def test_a_change_that_was_missed_is_made_and_reported_on_resuming(fit):
    earlier = fit({"step": 7, "parts": ["vision"]}, steps=5, save="stopped.ckpt")
    ran = fit({"step": 4, "parts": ["vision"]}, resume=str(earlier.path))
    assert ran.job.phases == [(5, "unfrozen: vision")]


@pytest.fixture
def held(model_config):
    """A schedule and a module as they are on one of two ranks."""
    torch.manual_seed(0)
    model = build_model(model_config(freeze=FROZEN))
    module = IdeficsModule(model, OptimizerConfig(learning_rate=1e-2), steps=8)
    schedule = UnfreezeSchedule([UnfreezeConfig(step=2, parts=("vision",))])
    trainer = SimpleNamespace(world_size=2, global_step=0, strategy=None)
    schedule.setup(trainer, module, "fit")
    return schedule, trainer, module


def test_with_several_ranks_a_wrapper_finds_all_that_will_learn(held):
    _, _, module = held
    assert all(p.requires_grad for p in learners(module, ["vision"]))
    assert not any(p.requires_grad for p in learners(module, ["embeddings"]))


def test_with_several_ranks_gradients_are_thrown_away_until_the_step(held):
    schedule, trainer, module = held
    batch = next(iter(Documents()))
    seen = []
    for step in range(4):
        trainer.global_step = step
        schedule.on_train_batch_start(trainer, module, batch, step)
        module.zero_grad()
        for block in module.model.model.gated_cross_attn_layers:
            block.alpha_cross_attn.data.fill_(1.0)
        module.training_step(batch, step).backward()
        schedule.on_after_backward(trainer, module)
        part = [p for p in learners(module, ["vision"]) if p.grad is not None]
        seen.append(len(part) > 0)
        assert next(learners(module, ["resampler"])).grad is not None
    assert seen == [False, False, True, True]


def test_what_is_saved_is_what_is_unfrozen(held):
    schedule, trainer, module = held
    assert schedule.state_dict() == {"open": []}
    trainer.global_step = 5
    schedule.on_train_batch_start(trainer, module, None, 0)
    state = copy.deepcopy(schedule.state_dict())
    assert state == {"open": ["vision"]}
    module.stabilizer_job = job = Job()
    job.trainer = trainer
    fresh = UnfreezeSchedule([UnfreezeConfig(step=2, parts=("vision",))])
    fresh.setup(trainer, module, "fit")
    fresh.load_state_dict(state)
    fresh.on_train_batch_start(trainer, module, None, 0)
    assert job.phases == []
