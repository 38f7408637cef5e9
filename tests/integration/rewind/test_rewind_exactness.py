"""After a rollback without skip or cut, the job is bit for bit the undisturbed one.

All runs have dropout, batch norm, gradient accumulation over 2 microbatches, and a validation that
draws random numbers; the reference runs without the agent.
"""

from __future__ import annotations

from functools import partial

import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

# 60 points, batches of 4, accumulation 2: 15 batches, 8 steps an epoch, the last of one batch.


def plain(kit, **options):
    return DataLoader(kit.Points(**options.pop("points", {})), batch_size=4, **options)


LOADERS = {
    "shuffle": {"shuffle": True},
    "shuffle-workers": {"shuffle": True, "num_workers": 2},
    "shuffle-persistent": {"shuffle": True, "num_workers": 2, "persistent_workers": True},
    "augment-main": {"shuffle": True, "points": {"noise": True}},
    "augment-workers": {"shuffle": True, "num_workers": 2, "points": {"noise": True}},
    "augment-persistent": {
        "shuffle": True,
        "num_workers": 2,
        "persistent_workers": True,
        "points": {"noise": True},
    },
}


ROLLBACKS = {7: 5, 10: 8, 11: 5, 14: 10}
"""Step of the command, step of the snapshot. 10 to 8: to the start of an epoch; 11 to 5: into the
epoch before, across a validation, and to a snapshot that was restored before."""

REFERENCES = {}
"""Undisturbed runs, by loader; without the agent they are the same every time."""


def reference_run(kit, name):
    if name not in REFERENCES:
        REFERENCES[name] = kit.train(partial(plain, kit, **LOADERS[name]), watched=False)
    return REFERENCES[name]


@pytest.mark.parametrize("name", LOADERS)
def test_rollbacks_repeat_the_run(kit, name):
    reference = reference_run(kit, name)
    rewound = kit.train(
        partial(plain, kit, **LOADERS[name]),
        plan={
            issued: lambda job, target=target: kit.rollback(job, target)
            for issued, target in ROLLBACKS.items()
        },
        snapshot_every=1,
        watcher_options={"keep_snapshots": 16},
    )
    assert [r.state for r in rewound.results] == ["applied"] * len(ROLLBACKS)
    assert [r.read_back.attempt for r in rewound.results] == [2, 3, 4, 5]
    starts = [0, *kit.returned_at(rewound)]
    ends = [*starts[1:], len(rewound.history)]
    for target, start, end in zip([0, *ROLLBACKS.values()], starts, ends, strict=True):
        expected = [item for item in reference.history if item[0] >= target]
        assert rewound.history[start:end] == expected[: end - start], target
    kit.assert_same_from(reference, rewound, 10, starts[-1])
    assert rewound.net.epoch_values[-1] == reference.net.epoch_values[-1]
    assert rewound.net.memory == reference.net.memory
    assert rewound.net.seen == reference.net.seen


def stream(kit, limit=None):
    return kit.StatefulStream(limit=limit)


def noisy(kit, workers):
    return DataLoader(kit.NoisyStream(), batch_size=4, num_workers=workers)


# Without a length Lightning's fetcher holds one batch ahead of training.
UNSIZED = {
    "stateful": (stream, {"max_steps": 20, "max_epochs": -1}),
    "stateful-epochs": (partial(stream, limit=1000), {"max_steps": 20, "limit_train_batches": 14}),
    "replayed": (partial(noisy, workers=0), {"max_steps": 20, "max_epochs": -1}),
    "replayed-workers": (partial(noisy, workers=2), {"max_steps": 20, "max_epochs": -1}),
}


@pytest.mark.parametrize("name", UNSIZED)
def test_rollback_repeats_a_stream_without_length(kit, name):
    make, options = UNSIZED[name]
    options = {"val_check_interval": 6, "check_val_every_n_epoch": None} | options
    reference = kit.train(partial(make, kit), watched=False, **options)
    rewound = kit.train(partial(make, kit), plan={13: lambda job: kit.rollback(job, 10)}, **options)
    assert [r.state for r in rewound.results] == ["applied"]
    assert rewound.result().read_back.samples == 10 * 2 * 4
    kit.assert_same_from(reference, rewound, 10, kit.returned_at(rewound)[-1])


def test_rollback_across_a_validation_in_the_middle_of_an_epoch(kit):
    make = partial(plain, kit, shuffle=True)
    reference = kit.train(make, watched=False, val_check_interval=4)
    rewound = kit.train(make, plan={7: lambda job: kit.rollback(job, 5)}, val_check_interval=4)
    kit.assert_same_from(reference, rewound, 5, kit.returned_at(rewound)[-1])


def test_rollback_at_the_last_boundary_and_to_the_first_snapshot(kit):
    make = partial(plain, kit, **LOADERS["shuffle"])
    reference = reference_run(kit, "shuffle")
    rewound = kit.train(
        make, plan={23: lambda job: kit.rollback(job, 0)}, watcher_options={"keep_snapshots": 9}
    )
    kit.assert_same_from(reference, rewound, 0, kit.returned_at(rewound)[-1])
    assert rewound.net.epoch_values[-3:] == reference.net.epoch_values


def test_combined_loaders_of_different_kinds(kit):
    def make():
        return {
            "a": DataLoader(kit.Points(noise=True), batch_size=4, shuffle=True, num_workers=2),
            "b": DataLoader(kit.Points(20), batch_size=4, shuffle=True),
        }

    class Two(kit.Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch["b"], batch_idx)
            return super().training_step(batch["a"], batch_idx)

    reference = kit.train(make, watched=False, net=Two)
    rewound = kit.train(make, plan={13: lambda job: kit.rollback(job, 5)}, net=Two)
    assert [r.state for r in rewound.results] == ["applied"]
    kit.assert_same_from(reference, rewound, 5, kit.returned_at(rewound)[-1])


def test_manual_optimization_is_rewound_with_its_gradients(kit):
    make = partial(plain, kit, shuffle=True)
    options = {"accumulate_grad_batches": 1, "max_epochs": 2}
    reference = kit.train(make, watched=False, net=partial(kit.Net, manual=True), **options)
    rewound = kit.train(
        make,
        plan={18: lambda job: kit.rollback(job, 10)},
        net=partial(kit.Net, manual=True),
        **options,
    )
    assert [r.state for r in rewound.results] == ["applied"]
    kit.assert_same_from(reference, rewound, 10, kit.returned_at(rewound)[-1])


def test_the_agent_alone_changes_nothing(kit):
    reference = reference_run(kit, "augment-workers")
    watched = kit.train(partial(plain, kit, **LOADERS["augment-workers"]))
    assert watched.history == reference.history
    kit.assert_same_from(reference, watched, 0, 0)


def test_loaders_that_are_reloaded_every_epoch(kit):
    kept = plain(kit, shuffle=True, num_workers=2, persistent_workers=True, points={"noise": True})

    def run(**options):
        class Reloading(kit.Net):
            def train_dataloader(self):
                if self.trainer.current_epoch == 2:
                    return plain(kit, shuffle=True, points={"size": 44})
                return kept

        kept._iterator = None
        return kit.train(None, net=Reloading, reload_dataloaders_every_n_epochs=1, **options)

    reference = run(watched=False)
    # From the shorter epoch of another loader back into the first epoch, and on through all.
    rewound = run(plan={19: lambda job: kit.rollback(job, 5)})
    assert [r.state for r in rewound.results] == ["applied"]
    kit.assert_same_from(reference, rewound, 5, kit.returned_at(rewound)[-1])


def test_averaged_weights_are_rewound(kit):
    make = partial(plain, kit, shuffle=True)
    reference = kit.train(make, watched=False, callbacks=[EMAWeightAveraging(decay=0.9)])
    rewound = kit.train(
        make,
        plan={13: lambda job: kit.rollback(job, 5)},
        callbacks=[EMAWeightAveraging(decay=0.9)],
    )
    assert [r.state for r in rewound.results] == ["applied"]
    kit.assert_same_from(reference, rewound, 5, kit.returned_at(rewound)[-1])
