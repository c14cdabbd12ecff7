import numpy as np
import pytest

from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr, snr

SDXL = betas()
RESCALED = rescale_zero_terminal_snr(SDXL)


def test_defaults_are_the_schedule_of_sdxl():
    abar = alphas_cumprod(SDXL)
    assert abar.shape == (1000,)
    assert abar.dtype == np.float64
    np.testing.assert_allclose(abar[[0, 999]], [0.99915, 0.0046601], rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(abar[999]), 0.068265, rtol=1e-5)


def test_signal_to_noise_around_the_split_of_two_experts_is_one():
    np.testing.assert_allclose(snr(alphas_cumprod(SDXL))[[349, 350, 999]], [1.03317, 1.02629, 0.0046819], rtol=1e-5)
    np.testing.assert_allclose(snr(alphas_cumprod(RESCALED))[[349, 350]], [0.91804, 0.91167], rtol=1e-5)


def test_extreme_sigmas_are_those_of_the_discrete_denoiser():
    sigmas = snr(alphas_cumprod(SDXL)) ** -0.5
    np.testing.assert_allclose(sigmas[[0, 999]], [0.0292, 14.615], rtol=2e-3)


def test_rescaled_schedule_ends_in_pure_noise_and_starts_where_it_did():
    abar = alphas_cumprod(RESCALED)
    np.testing.assert_allclose(abar[0], alphas_cumprod(SDXL)[0], rtol=1e-14)
    np.testing.assert_allclose(abar[998], 1.96789e-7, rtol=1e-5)
    assert abar[999] == 0
    assert snr(abar)[999] == 0


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "cosine"])
@pytest.mark.parametrize("rescale", [False, True])
def test_every_schedule_loses_signal_at_every_step(schedule, rescale):
    beta = betas(schedule)
    abar = alphas_cumprod(rescale_zero_terminal_snr(beta) if rescale else beta)
    assert (np.diff(abar) < 0).all()
    assert 0 <= abar[-1] < abar[0] < 1


def test_linear_schedule_runs_from_start_to_end():
    np.testing.assert_allclose(betas("linear", 3, 0.1, 0.3), [0.1, 0.2, 0.3])


def test_cosine_schedule_follows_its_formula():
    abar = alphas_cumprod(betas("cosine"))
    expected = (
        np.cos((np.arange(1, 999) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    np.testing.assert_allclose(abar[:998], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"schedule": "sigmoid"}, "scaled_linear"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_end"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ],
)
def test_what_is_no_schedule_is_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        betas(**arguments)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("ours", "theirs"), [("scaled_linear", "scaled_linear"), ("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("rescale", [False, True])
def test_equals_diffusers(ours, theirs, rescale):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=theirs, rescale_betas_zero_snr=rescale
    )
    beta = betas(ours)
    abar = alphas_cumprod(rescale_zero_terminal_snr(beta) if rescale else beta)
    np.testing.assert_allclose(abar, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)
