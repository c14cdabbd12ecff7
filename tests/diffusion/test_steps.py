import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr
from gm.diffusion.steps import (
    SPACINGS,
    add_noise,
    handover,
    inference_steps,
    inference_timesteps,
    sigma_to_timestep,
    sigmas,
    skipped_steps,
)

ABAR = alphas_cumprod(betas())
ZERO_TERMINAL = alphas_cumprod(rescale_zero_terminal_snr(betas()))


def test_forty_steps_are_those_of_diffusers():
    trailing, leading = inference_timesteps(40, "trailing"), inference_timesteps(40, "leading")
    assert trailing[:3].tolist() == [999, 974, 949]
    assert trailing[-2:].tolist() == [49, 24]
    assert leading[:2].tolist() == [976, 951]
    assert leading[-2:].tolist() == [26, 1]
    linspace = inference_timesteps(40, "linspace")
    assert (linspace[0], linspace[-1]) == (999, 0)


@given(st.integers(1, 1000), st.sampled_from(SPACINGS), st.booleans())
def test_timesteps_fall_strictly_inside_the_schedule(num_steps, spacing, one_more):
    assume(spacing != "leading" or num_steps < 999)
    timesteps = inference_timesteps(num_steps, spacing, one_more=one_more)
    assert len(timesteps) == num_steps
    assert (np.diff(timesteps) < 0).all()
    assert 0 <= timesteps[-1] <= timesteps[0] <= 999


@given(st.integers(1, 1000))
def test_trailing_always_visits_the_last_timestep(num_steps):
    assert inference_timesteps(num_steps, "trailing")[0] == 999


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((40, "middle"), "trailing"), ((0,), "between 1"), ((1001, "trailing"), "1000"), ((1000, "leading"), "trailing")],
)
def test_impossible_timesteps_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        inference_timesteps(*arguments)


@pytest.mark.parametrize(
    ("num_steps", "spacing", "counts"),
    [
        (40, "trailing", (26, 14)),
        (40, "leading", (26, 14)),
        (30, "trailing", (20, 10)),
        (30, "leading", (19, 11)),
        (25, "trailing", (17, 8)),
        (20, "trailing", (13, 7)),
    ],
)
def test_hand_over_at_065_counts_as_diffusers_does(num_steps, spacing, counts):
    steps = inference_steps(ABAR, num_steps, spacing)
    first, second = steps.until(handover(0.65)), steps.below(handover(0.65))
    assert (len(first), len(second)) == counts
    assert first.timesteps.min() >= 350 > second.timesteps.max()


@given(st.integers(1, 998), st.sampled_from(SPACINGS), st.floats(0.01, 0.99), st.sampled_from(["karras", "multistep"]))
def test_every_step_is_of_one_of_the_two_stages(num_steps, spacing, fraction, grid):
    steps = inference_steps(ABAR, num_steps, spacing, grid=grid)
    first, second = steps.until(handover(fraction)), steps.below(handover(fraction))
    assert list(first) + list(second) == list(steps)
    assert all(timestep >= handover(fraction) for timestep in first.timesteps)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_hand_over_outside_the_schedule_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        handover(fraction)


@pytest.mark.parametrize(("strength", "skipped"), [(1.0, 0), (0.75, 10), (0.6, 16), (0.5, 20), (0.03, 39)])
def test_strength_takes_the_last_steps(strength, skipped):
    assert skipped_steps(40, strength) == skipped


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, 0.02])
def test_a_strength_without_steps_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        skipped_steps(40, strength)


@pytest.mark.parametrize("grid", ["karras", "multistep", "ddim", "ddpm", "consistency"])
@pytest.mark.parametrize("abar", [ABAR, ZERO_TERMINAL], ids=["sdxl", "zero-terminal"])
def test_every_step_takes_noise_away(grid, abar):
    steps = inference_steps(abar, 10, "trailing", grid=grid)
    assert (steps.next_alphas_cumprod > steps.alphas_cumprod).all()
    np.testing.assert_allclose(steps.next_alphas_cumprod[:-1], steps.alphas_cumprod[1:], rtol=1e-12)
    assert steps.next_alphas_cumprod[-1] == (abar[0] if grid == "ddim" else 1)


def test_parts_of_a_run_make_up_the_run():
    steps = inference_steps(ABAR, 10, "trailing")
    assert list(steps[:4]) + list(steps[4:]) == list(steps)
    assert steps[:4].initial_scale == steps.initial_scale < 1
    assert steps[4:].initial_scale == 1


def test_karras_sigmas_follow_the_paper_and_keep_the_ends():
    steps = inference_steps(ABAR, 10, "linspace", karras_sigmas=True)
    levels = sigmas(steps.alphas_cumprod)
    np.testing.assert_allclose(levels[[0, -1]], sigmas(ABAR)[[999, 0]], rtol=1e-9)
    roots = levels ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 9, rtol=1e-6)


@pytest.mark.parametrize("grid", ["ddim", "ddpm", "consistency"])
def test_karras_sigmas_of_whole_timesteps_are_refused(grid):
    with pytest.raises(ValueError, match="Karras"):
        inference_steps(ABAR, 10, karras_sigmas=True, grid=grid)


def test_consistency_steps_are_a_subset_of_the_students():
    assert inference_steps(ABAR, 4, grid="consistency").timesteps.tolist() == [999, 759, 499, 259]
    with pytest.raises(ValueError, match="50"):
        inference_steps(ABAR, 51, grid="consistency")


@given(st.floats(0, 999))
def test_timestep_of_a_sigma_inverts_at_trained_timesteps_and_is_monotone(timestep):
    whole = int(timestep)
    np.testing.assert_allclose(sigma_to_timestep(sigmas(ABAR)[whole], ABAR), whole, atol=1e-6)
    assert sigma_to_timestep(0.0, ABAR) == 0
    assert sigma_to_timestep(1e9, ABAR) == 999


def test_noise_is_added_by_the_share_that_is_left():
    latents, noise = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(add_noise(latents, noise, 1.0), latents)
    np.testing.assert_array_equal(add_noise(latents, noise, 0.0), noise)
    assert add_noise(latents, noise, 0.3).dtype == np.float32
