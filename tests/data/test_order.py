import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gm.data.order import GlobalBatch, epoch_batches, strata

SIZES = [(64, 64), (32, 128), (128, 32)]
sizes_of_samples = st.lists(st.sampled_from(SIZES), min_size=1, max_size=60)


@given(sizes_of_samples, st.integers(1, 12), st.integers(0, 3), st.booleans())
def test_every_sample_counts_once_an_epoch(sizes, batch, epoch, shuffle):
    steps = epoch_batches(sizes, batch, 42, epoch, shuffle)
    counted = sorted(position for step in steps for position in step.positions[: step.real])
    assert counted == list(range(len(sizes)))
    for step in steps:
        assert len(step.positions) == batch
        assert len({sizes[position] for position in step.positions}) == 1
        assert set(step.positions) == set(step.positions[: step.real])


@given(sizes_of_samples, st.integers(1, 12))
def test_weights_make_the_mean_over_the_batch_that_over_the_real_samples(sizes, batch):
    losses = np.random.default_rng(0).random(len(sizes))
    for step in epoch_batches(sizes, batch, 1, 0):
        weighted = (losses[step.positions] * step.weights).mean()
        assert np.isclose(weighted, losses[step.positions[: step.real]].mean(), rtol=1e-6)


@given(sizes_of_samples, st.integers(1, 12))
def test_drop_last_leaves_only_full_batches(sizes, batch):
    steps = epoch_batches(sizes, batch, 42, 0, drop_last=True)
    assert all(step.real == batch for step in steps)
    assert sum(step.real for step in steps) == sum(sizes.count(size) // batch * batch for size in SIZES)


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        return [int(position) for step in epoch_batches([(64, 64)] * 40, 4, seed, epoch) for position in step.positions]

    assert order(42, 0) == order(42, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_without_shuffling_samples_come_as_they_lie():
    steps = epoch_batches([(64, 64)] * 5, 2, 42, 3, shuffle=False)
    assert [step.positions.tolist() for step in steps] == [[0, 1], [2, 3], [4, 4]]


def test_buckets_take_turns_in_a_shuffled_epoch():
    steps = epoch_batches([(64, 64), (32, 128)] * 40, 4, 42, 0)
    kinds = [step.positions[0] % 2 for step in steps]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_every_real_sample_has_a_stratum_of_its_own(size, real, epoch, step):
    real = min(size, real)
    whole = GlobalBatch(np.resize(np.arange(real), size), real)
    found = strata(whole, 42, epoch, step)
    assert sorted(found[:real]) == list(range(real))
    np.testing.assert_array_equal(found, found[whole.positions])  # what fills up is the sample it repeats


def test_strata_are_dealt_out_anew_in_every_step_and_epoch():
    whole = GlobalBatch(np.arange(32), 32)
    dealt = [tuple(strata(whole, 42, epoch, step)) for epoch in range(3) for step in range(3)]
    assert len(set(dealt)) == 9
    assert tuple(strata(whole, 42, 1, 1)) == dealt[4]
