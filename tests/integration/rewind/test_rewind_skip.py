"""A rollback with skip skips exactly the samples after the restored position."""

from __future__ import annotations

from functools import partial

from torch.utils.data import DataLoader


def ids_of(ran, begin=0, end=None):
    return [list(ids) for _, ids, _ in ran.history[begin:end]]


def test_a_stream_skips_samples_from_the_restored_position(kit):
    ran = kit.train(
        kit.StatefulStream,
        plan={13: lambda job: kit.rollback(job, 10, skip_steps=3)},
        max_steps=20,
        max_epochs=-1,
        val=False,
    )
    (back,) = kit.returned_at(ran)
    # 10 steps of 2 batches of 4 are samples 0..79; 3 steps' worth are samples 80..103.
    assert ids_of(ran, back - 1, back) == [[100, 101, 102, 103]]
    assert ids_of(ran, back, back + 2) == [[104, 105, 106, 107], [108, 109, 110, 111]]
    assert ran.history[back][0] == 10
    read_back = ran.result().read_back
    assert (read_back.samples, read_back.skipped_samples) == (104, 24)
    assert (read_back.attempt, read_back.step) == (2, 10)


def test_a_sized_stream_continues_past_its_own_epoch(kit):
    class Sized(kit.StatefulStream):
        """Epochs of 12 batches; an iteration is the rest of an epoch."""

        def __len__(self):
            return 12

        def __iter__(self):
            end = (self.samples // 48 + 1) * 48
            for batch in super().__iter__():
                yield batch
                if self.samples >= end:
                    return

    ran = kit.train(
        Sized, plan={6: lambda job: kit.rollback(job, 4, skip_steps=3)}, max_epochs=2,
        val=False, snapshot_every=2,
    )  # fmt: skip
    (back,) = kit.returned_at(ran)
    # Samples 32..55 are left out, across the stream's end at 48; both epochs keep 12 batches.
    firsts = [ids[0] for ids in ids_of(ran, back)]
    assert firsts == list(range(56, 56 + 4 * (4 + 12), 4))
    assert ran.trainer.global_step == 12
    assert ran.result().read_back.skipped_samples == 24


def test_a_plain_loader_leaves_out_the_next_batches_of_its_order(kit):
    make = partial(DataLoader, kit.Points(), batch_size=4, shuffle=True, num_workers=2)
    reference = kit.train(make, watched=False)
    ran = kit.train(
        make, plan={4: lambda job: kit.rollback(job, 2, skip_steps=3)}, snapshot_every=2
    )
    (back,) = kit.returned_at(ran)
    assert ids_of(ran, back, back + 5) == ids_of(reference, 10, 15)
    assert ran.result().read_back.skipped_samples == 24
    assert ran.result().read_back.samples == 2 * 8 + 24
    # The epoch ends where it would have, and the epochs after it have their full length.
    assert len(ids_of(ran, back + 5)) == 30


def test_a_skip_leaves_the_last_step_of_an_epoch(kit):
    make = partial(DataLoader, kit.Points(), batch_size=4, shuffle=True)
    reference = kit.train(make, watched=False)
    ran = kit.train(
        make, plan={6: lambda job: kit.rollback(job, 4, skip_steps=50)}, snapshot_every=2
    )
    (back,) = kit.returned_at(ran)
    # 15 batches an epoch, 8 used at step 4: 6 can go, the last one (a step of its own) stays.
    assert ids_of(ran, back, back + 1) == ids_of(reference, 14, 15)
    assert ran.result().read_back.skipped_samples == 24
    assert "val_loss" in ran.trainer.callback_metrics
    assert len(ran.net.epoch_values) == 3


def test_a_skip_to_the_end_of_an_unsized_loader_keeps_its_last_step(kit):
    class Finite(kit.NoisyStream):
        def __iter__(self):
            for number, item in enumerate(super().__iter__()):
                if number == 60:
                    return
                yield item

    make = partial(DataLoader, Finite(), batch_size=4)
    ran = kit.train(
        make, plan={6: lambda job: kit.rollback(job, 4, skip_steps=50)}, snapshot_every=2
    )
    (back,) = kit.returned_at(ran)
    assert ids_of(ran, back, back + 2) == [[52, 53, 54, 55], [56, 57, 58, 59]]
    assert ran.result().read_back.skipped_samples == 5 * 4
    assert ran.trainer.current_epoch == 3


def test_prefetched_batches_count_as_the_first_to_be_left_out(kit):
    ran = kit.train(
        partial(DataLoader, kit.NoisyStream(), batch_size=4),
        plan={7: lambda job: kit.rollback(job, 5, skip_steps=1)},
        max_steps=10,
        max_epochs=-1,
        val=False,
    )
    (back,) = kit.returned_at(ran)
    assert ids_of(ran, back, back + 1) == [[48, 49, 50, 51]]
    assert ran.result().read_back.samples == 48


def test_a_second_skip_starts_from_the_snapshot_again(kit):
    plan = {
        12: lambda job: kit.rollback(job, 10, skip_steps=2),
        13: lambda job: kit.rollback(job, 10, skip_steps=4),
    }
    ran = kit.train(kit.StatefulStream, plan=plan, max_steps=16, max_epochs=-1, val=False)
    first, second = kit.returned_at(ran)
    assert ids_of(ran, first, first + 1) == [[96, 97, 98, 99]]
    assert ids_of(ran, second, second + 1) == [[112, 113, 114, 115]]
    assert [r.read_back.skipped_samples for r in ran.results] == [16, 32]
