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


@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 2)), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 2.5]), min_size=3, max_size=3),
    st.integers(1, 12),
    st.booleans(),
)
def test_repeats_are_shared_evenly_among_the_samples_and_over_the_epochs(samples, repeats, batch, shuffle):
    sizes, datasets = zip(*samples)
    visits = {position: [] for position in range(len(sizes))}
    lengths = set()
    for epoch in range(6):
        steps = epoch_batches(sizes, batch, 42, epoch, shuffle, False, datasets, repeats)
        lengths.add((len(steps), sum(step.real for step in steps)))
        drawn = [pair for step in steps for pair in zip(step.positions[: step.real], step.visits[: step.real])]
        for position, visit in sorted(drawn, key=lambda pair: pair[1]):
            visits[position].append(visit)
    assert len(lengths) == 1
    for position, seen in visits.items():
        assert seen == list(range(len(seen)))  # one visit after the other
        alike = [other for other in range(len(sizes)) if samples[other] == samples[position]]
        count = max(1, round(repeats[datasets[position]] * len(alike)))
        assert 6 * count // len(alike) <= len(seen) <= -(-6 * count // len(alike))


@given(sizes_of_samples, st.integers(1, 12), st.booleans())
def test_whole_repeats_are_that_many_visits_in_every_epoch(sizes, batch, shuffle):
    for epoch in range(3):
        steps = epoch_batches(sizes, batch, 42, epoch, shuffle, repeats=[2.0])
        drawn = sorted(pair for step in steps for pair in zip(step.positions[: step.real], step.visits[: step.real]))
        expected = [(position, visit) for position in range(len(sizes)) for visit in (2 * epoch, 2 * epoch + 1)]
        assert drawn == expected


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_data_sets_are_dealt_evenly_over_the_batches(ones, others, batch, shuffle):
    datasets = [0] * ones + [1] * others
    for step in epoch_batches([(64, 64)] * len(datasets), batch, 42, 0, shuffle, False, datasets, [1.0, 1.0]):
        share = sum(datasets[position] == 0 for position in step.positions[: step.real])
        assert abs(share - step.real * ones / len(datasets)) <= 1
    pairs = epoch_batches([(64, 64)] * 2 * ones, 2, 42, 0, shuffle, False, [0] * ones + [1] * ones, [1.0, 1.0])
    assert all([position // ones for position in step.positions] == [0, 1] for step in pairs)


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
    whole = GlobalBatch(np.resize(np.arange(real), size), real, np.zeros(size, int))
    found = strata(whole, 42, epoch, step)
    assert sorted(found[:real]) == list(range(real))
    np.testing.assert_array_equal(found, found[whole.positions])  # what fills up is the sample it repeats


def test_strata_are_dealt_out_anew_in_every_step_and_epoch():
    whole = GlobalBatch(np.arange(32), 32, np.zeros(32, int))
    dealt = [tuple(strata(whole, 42, epoch, step)) for epoch in range(3) for step in range(3)]
    assert len(set(dealt)) == 9
    assert tuple(strata(whole, 42, 1, 1)) == dealt[4]
