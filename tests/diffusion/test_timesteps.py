import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.diffusion.timesteps import bias_weights, draw, draw_sigmas, expert_range, range_mask, stratify

UNIFORM = st.floats(0, 1, exclude_max=True)


def test_without_bias_all_timesteps_weigh_the_same():
    np.testing.assert_array_equal(bias_weights("none", 1000, multiplier=7), np.full(1000, 1e-3))


def test_range_200_to_500_twice_takes_46_percent_of_the_draws():
    weights = bias_weights("range", 1000, 2.0, 200, 500)
    np.testing.assert_allclose(weights[200:500].sum(), 0.462, atol=5e-4)
    timesteps = draw(weights, np.random.default_rng(0).random(20_000))
    assert abs(((timesteps >= 200) & (timesteps < 500)).mean() - 6 / 13) < 0.012


def test_end_of_the_range_is_exclusive_and_begin_is_not():
    weights = bias_weights("range", 1000, 2.0, 200, 500)
    np.testing.assert_allclose(weights[[200, 499]] / weights[0], 2)
    np.testing.assert_allclose(weights[[199, 500]] / weights[0], 1)


@pytest.mark.parametrize(
    ("strategy", "biased"), [("earlier", slice(0, 250)), ("later", slice(750, 1000)), ("range", slice(100, 300))]
)
@pytest.mark.parametrize("multiplier", [0.5, 3.0])
def test_weights_follow_the_formula(strategy, biased, multiplier):
    expected = np.ones(1000)
    expected[biased] *= multiplier
    weights = bias_weights(strategy, 1000, multiplier, 100, 300, 0.25)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1)


def test_portion_is_truncated_to_whole_timesteps():
    weights = bias_weights("later", 10, 2.0, portion=0.29)
    np.testing.assert_allclose(weights / weights[0], [1] * 8 + [2] * 2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"strategy": "sooner"}, "earlier"),
        ({"strategy": "earlier", "multiplier": 0.0}, "multiplier"),
        ({"strategy": "later", "multiplier": -1.0}, "multiplier"),
        ({"strategy": "range", "begin": 500, "end": 500}, "range"),
        ({"strategy": "range", "begin": 0, "end": 1001}, "range"),
        ({"strategy": "earlier", "portion": 0.0}, "portion"),
    ],
)
def test_impossible_biases_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        bias_weights(**arguments)


def expert_mask(length: int, strength: float, invert: bool = False) -> np.ndarray:
    return range_mask(length, *expert_range(length, strength, invert))


def test_experts_of_strength_035_meet_at_350():
    second, first = expert_mask(1000, 0.35), expert_mask(1000, 0.35, invert=True)
    np.testing.assert_array_equal(np.flatnonzero(second), np.arange(350))
    np.testing.assert_array_equal(np.flatnonzero(first), np.arange(350, 1000))
    assert (expert_range(1000, 0.35), expert_range(1000, 0.35, invert=True)) == ((0, 350), (350, 1000))


@given(st.integers(1, 999))
def test_experts_are_disjoint_and_complete_and_rounding_is_truncation(thousandths):
    strength = thousandths / 1000
    second, first = expert_mask(1000, strength), expert_mask(1000, strength, invert=True)
    assert (second ^ first).all()
    assert second.sum() == int(1000 * strength) == thousandths


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.2, 1.5])
def test_a_stage_without_timesteps_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        expert_range(1000, strength)


@pytest.mark.parametrize("batch", [1, 2, 10])
@pytest.mark.parametrize("invert", [False, True])
def test_no_timestep_outside_a_stage_is_drawn_at_any_batch_size(batch, invert):
    weights = bias_weights("range", 1000, 3.0, 200, 500) * expert_mask(1000, 0.35, invert)
    uniforms = np.random.default_rng(1).random((2000, batch))
    timesteps = np.concatenate([draw(weights, row) for row in uniforms])
    low, high = (350, 999) if invert else (0, 349)
    assert timesteps.min() >= low
    assert timesteps.max() <= high


@given(UNIFORM, st.integers(2, 1000), st.floats(0.001, 0.999), st.booleans(), st.floats(0.01, 100), st.floats(0.01, 1))
def test_one_sample_alone_never_leaves_its_stage(uniform, length, strength, invert, multiplier, portion):
    if not 0 < round(strength * length) < length:
        return
    for strategy in ("none", "earlier", "later"):
        weights = bias_weights(strategy, length, multiplier, portion=portion) * expert_mask(length, strength, invert)
        (timestep,) = draw(weights, np.array([uniform]))
        assert (timestep >= round(strength * length)) == invert
        assert 0 <= timestep < length


@given(st.lists(UNIFORM, min_size=1, max_size=8))
def test_uniform_weights_draw_by_equal_parts(uniforms):
    timesteps = draw(bias_weights(), np.array(uniforms))
    assert timesteps.dtype == np.int64
    assert (np.abs(timesteps - np.floor(np.array(uniforms) * 1000)) <= 1).all()
    assert ((timesteps >= 0) & (timesteps < 1000)).all()


def test_draw_of_the_edges_skips_timesteps_without_weight():
    weights = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(draw(weights, np.array([0.0, 0.4999, 0.5, np.nextafter(1, 0)])), [1, 1, 3, 3])


def test_draw_does_not_change_its_weights():
    weights = np.array([1.0, 3.0])
    draw(weights, np.array([0.5]))
    np.testing.assert_array_equal(weights, [1.0, 3.0])


@pytest.mark.parametrize("weights", [np.zeros(3), np.array([1.0, -1.0])])
def test_weights_from_which_nothing_can_be_drawn_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        draw(weights, np.array([0.5]))


@pytest.mark.parametrize("uniform", [-0.1, 1.0])
def test_uniforms_outside_their_interval_are_refused(uniform):
    with pytest.raises(ValueError, match="below 1"):
        draw(np.ones(3), np.array([uniform]))


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_stratum_keeps_its_samples(total, seed):
    rng = np.random.default_rng(seed)
    strata = rng.permutation(total)
    moved = stratify(rng.random(total), strata, total)
    np.testing.assert_array_equal(np.floor(moved * total + 1e-9), strata)
    assert (moved < 1).all()


def test_strata_never_reach_the_next():
    almost = np.nextafter(1, 0)
    moved = stratify(np.array([almost, almost]), np.array([1, 2]), 3)
    assert moved[0] < 2 / 3
    assert moved[1] < 1


def test_stratified_draws_are_spread_by_the_bias():
    """Each of 13 strata has 1/13 of the mass: 6 of them lie in the range that takes 6/13 of the draws."""
    weights = bias_weights("range", 1000, 2.0, 200, 500)
    moved = stratify(np.random.default_rng(0).random(13), np.random.default_rng(1).permutation(13), 13)
    timesteps = draw(weights, moved)
    assert 5 <= ((timesteps >= 200) & (timesteps < 500)).sum() <= 7
    assert len(set(timesteps)) == 13


def test_sigmas_are_those_of_the_paper():
    sigmas = draw_sigmas(np.array([0.5, 0.15865525393145707, 0.8413447460685429]))
    np.testing.assert_allclose(np.log(sigmas), [-1.2, -2.4, 0.0], atol=1e-12)
    logs = np.log(draw_sigmas(np.random.default_rng(0).random(20_000), 0.4, 0.7))
    np.testing.assert_allclose([logs.mean(), logs.std()], [0.4, 0.7], atol=0.02)


@given(UNIFORM, st.floats(-4, 2), st.floats(0.2, 3))
def test_sigmas_stay_in_their_range_and_rise_with_the_uniform(uniform, mean, std):
    low, high = 0.0292, 14.6
    first, other = draw_sigmas(np.array([uniform, uniform / 2]), mean, std, low, high)
    assert low <= other <= first <= high


def test_a_range_keeps_the_shape_of_the_distribution():
    """Below the median of the whole lies as much as before, of what is left."""
    low, high = math.exp(-2.4), math.exp(1.2)  # one standard deviation down, two up
    sigmas = draw_sigmas(np.random.default_rng(0).random(20_000), low=low, high=high)
    share = 0.3413447 / (0.3413447 + 0.4772499)
    np.testing.assert_allclose((sigmas < math.exp(-1.2)).mean(), share, atol=0.01)


def test_sigmas_nobody_would_draw_are_refused():
    with pytest.raises(ValueError, match="move the mean"):
        draw_sigmas(np.array([0.5]), p_mean=-40.0, p_std=0.1, low=1.0, high=2.0)
    with pytest.raises(ValueError, match="below 1"):
        draw_sigmas(np.array([1.0]))


@pytest.mark.reference
@pytest.mark.parametrize("strategy", ["earlier", "later", "range"])
def test_equals_the_training_script_of_diffusers(strategy):
    """The script is no module: its function ``generate_timestep_weights``, transcribed with torch."""
    torch = pytest.importorskip("torch")
    expected = torch.ones(1000)
    to_bias = int(0.25 * 1000)
    indices = {"later": slice(-to_bias, None), "earlier": slice(0, to_bias), "range": slice(100, 600)}[strategy]
    expected[indices] *= 1.7
    expected /= expected.sum()
    weights = bias_weights(strategy, 1000, 1.7, 100, 600, 0.25)
    np.testing.assert_allclose(weights, expected.numpy(), rtol=1e-5)
