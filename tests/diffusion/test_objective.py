import numpy as np
import pytest

from gm.diffusion.objective import coefficients, huber_c, loss_weights
from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr, snr

ABAR = alphas_cumprod(betas())
ZERO_TERMINAL = alphas_cumprod(rescale_zero_terminal_snr(betas()))
SNR = snr(ABAR)


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", np.minimum(SNR, 5) / SNR),
        ("v_prediction", np.minimum(SNR, 5) / (SNR + 1)),
        ("sample", np.minimum(SNR, 5)),
    ],
)
def test_min_snr_follows_the_paper(prediction_type, expected):
    np.testing.assert_allclose(loss_weights(ABAR, prediction_type, 5.0), expected, rtol=1e-12)


def test_min_snr_of_epsilon_touches_timesteps_0_to_146_only():
    weights = loss_weights(ABAR, "epsilon", 5.0)
    np.testing.assert_allclose(weights[0], 0.0043, atol=5e-5)
    np.testing.assert_array_equal(np.flatnonzero(weights < 1), np.arange(147))
    assert weights.max() == 1


def test_min_snr_of_v_is_not_the_old_formula_that_added_one_first():
    weights = loss_weights(ABAR, "v_prediction", 5.0)
    old = np.minimum(SNR + 1, 5) / (SNR + 1)
    assert weights[900] < 0.1 < 0.9 < old[900]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_without_gamma_every_timestep_weighs_one(prediction_type):
    np.testing.assert_array_equal(loss_weights(ABAR, prediction_type), np.ones(1000))


@pytest.mark.parametrize("options", [{"snr_gamma": 5.0}, {"snr_gamma": 4.0, "weighting": "soft_min_snr"}])
def test_weightings_of_the_three_predictions_are_one_weighting_of_the_latents(options):
    """The error of epsilon is SNR times that of x_0, the error of v is SNR + 1 times."""
    of_latents = loss_weights(ABAR, "sample", **options)
    np.testing.assert_allclose(loss_weights(ABAR, "epsilon", **options) * SNR, of_latents, rtol=1e-12)
    np.testing.assert_allclose(loss_weights(ABAR, "v_prediction", **options) * (SNR + 1), of_latents, rtol=1e-12)


def test_soft_min_snr_approaches_both_ends_of_min_snr():
    hard, soft = loss_weights(ABAR, "sample", 4.0), loss_weights(ABAR, "sample", 4.0, "soft_min_snr")
    assert (soft < hard).all()
    np.testing.assert_allclose(soft[[0, 999]], hard[[0, 999]], rtol=5e-3)
    np.testing.assert_allclose(1 / soft, 1 / SNR + 1 / 4.0, rtol=1e-12)


def test_debiased_epsilon_weighs_by_the_inverse_root_of_snr():
    np.testing.assert_allclose(loss_weights(ABAR, "epsilon", weighting="debiased"), SNR**-0.5, rtol=1e-12)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased"])
def test_pure_noise_weighs_nothing_unless_there_is_a_floor(prediction_type, weighting):
    gamma = None if weighting == "debiased" else 5.0
    weights = loss_weights(ZERO_TERMINAL, prediction_type, gamma, weighting)
    assert np.isfinite(weights).all()
    assert weights[999] == 0
    floored = loss_weights(ZERO_TERMINAL, prediction_type, gamma, weighting, floor=0.1)
    assert floored.min() == 0.1
    np.testing.assert_array_equal(floored[weights > 0.1], weights[weights > 0.1])


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((ZERO_TERMINAL, "epsilon"), "v_prediction"),
        ((ZERO_TERMINAL, "epsilon", 5.0), "v_prediction"),
        ((ABAR, "noise"), "epsilon"),
        ((ABAR, "epsilon", 0.0), "above 0"),
        ((ABAR, "epsilon", None, "soft_min_snr"), "needs snr_gamma"),
        ((ABAR, "epsilon", None, "min_snr"), "needs snr_gamma"),
        ((ABAR, "epsilon", 5.0, "debiased"), "leave one"),
        ((ABAR, "epsilon", 5.0, "p2"), "min_snr"),
    ],
)
def test_impossible_combinations_are_refused_with_a_remedy(arguments, remedy):
    with pytest.raises(ValueError, match=remedy):
        loss_weights(*arguments)


@pytest.mark.parametrize("timesteps", [[0], [999], [3, 500, 999]])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_coefficients_noise_and_target_follow_the_definitions(timesteps, prediction_type):
    x0, noise = np.random.default_rng(0).standard_normal((2, len(timesteps)))
    alpha, sigma, target_noise, target_latents = coefficients(ABAR[timesteps], prediction_type)
    a, s = np.sqrt(ABAR[timesteps]), np.sqrt(1 - ABAR[timesteps])
    expected = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction_type]
    np.testing.assert_allclose(alpha * x0 + sigma * noise, a * x0 + s * noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target_noise * noise + target_latents * x0, expected, rtol=1e-5, atol=1e-6)
    assert all(part.dtype == np.float32 and part.shape == (len(timesteps),) for part in (alpha, sigma, target_noise))


def test_velocity_gives_back_latents_and_noise():
    x0, noise = 0.7, -1.3
    alpha, sigma, target_noise, target_latents = (part[0] for part in coefficients(ABAR[[600]], "v_prediction"))
    x, v = alpha * x0 + sigma * noise, target_noise * noise + target_latents * x0
    np.testing.assert_allclose([alpha * x - sigma * v, alpha * v + sigma * x], [x0, noise], rtol=1e-5)


def test_epsilon_of_pure_noise_is_refused():
    with pytest.raises(ValueError, match="v_prediction"):
        coefficients(ZERO_TERMINAL[[1, 999]], "epsilon")


@pytest.mark.parametrize("sigma", [[0.03], [0.01, 0.5, 1.0, 14.6]])
def test_at_a_continuous_sigma_the_network_is_preconditioned_as_in_karras(sigma):
    """With data of unit variance: c_in, c_skip and c_out of Karras et al. 2022, table 1, for each prediction."""
    sigma = np.array(sigma)
    x0, noise = np.random.default_rng(0).standard_normal((2, len(sigma)))
    x = x0 + sigma * noise
    c_in, c_skip, c_out = 1 / np.sqrt(1 + sigma**2), 1 / (1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    abar = 1 / (1 + sigma**2)
    alpha, spread, *target = coefficients(abar, "v_prediction")
    np.testing.assert_allclose(alpha * x0 + spread * noise, c_in * x, rtol=1e-5)
    np.testing.assert_allclose(c_skip * x - c_out * (target[0] * noise + target[1] * x0), x0, rtol=1e-4, atol=1e-5)
    *_, of_noise, of_latents = coefficients(abar, "epsilon")
    np.testing.assert_allclose(x - sigma * (of_noise * noise + of_latents * x0), x0, rtol=1e-4, atol=1e-5)
    snr_of_sigma = 1 / sigma**2
    np.testing.assert_allclose(
        loss_weights(abar, "v_prediction", 5.0), np.minimum(snr_of_sigma, 5) / (snr_of_sigma + 1), rtol=1e-6
    )
    # an unweighted loss of v is the paper's lambda(sigma) = 1 / c_out^2 times that of x_0
    np.testing.assert_allclose(loss_weights(abar, "v_prediction") / c_out**2, snr_of_sigma + 1, rtol=1e-6)


@pytest.mark.parametrize("timesteps", [[0], [0, 350, 998, 999]])
@pytest.mark.parametrize("abar", [ABAR, ZERO_TERMINAL], ids=["sdxl", "zero-terminal"])
def test_huber_schedules_follow_their_formulas(timesteps, abar):
    timesteps = np.array(timesteps)
    of_timesteps = abar[timesteps]
    with np.errstate(divide="ignore"):
        sigma = np.sqrt((1 - of_timesteps) / of_timesteps)
    expected = {
        "constant": np.full(len(timesteps), 0.1),
        "exponential": np.exp(np.log(0.1) / 1000 * timesteps),
        "snr": 0.9 / (1 + sigma) ** 2 + 0.1,
    }
    for schedule, values in expected.items():
        np.testing.assert_allclose(huber_c(schedule, 0.1, timesteps, of_timesteps), values, rtol=1e-12)


@pytest.mark.parametrize(("schedule", "c", "remedy"), [("linear", 0.1, "exponential"), ("snr", 0.0, "above 0")])
def test_senseless_huber_settings_are_refused(schedule, c, remedy):
    with pytest.raises(ValueError, match=remedy):
        huber_c(schedule, c, np.array([1]), ABAR[[1]])


@pytest.mark.reference
@pytest.mark.parametrize("abar", [ABAR, ZERO_TERMINAL], ids=["sdxl", "zero-terminal"])
def test_noise_and_velocity_equal_diffusers(abar):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=abar[-1] == 0
    )
    timesteps = np.array([0, 349, 350, 999])
    x0, noise = np.random.default_rng(0).standard_normal((2, 4, 4, 8, 8)).astype(np.float32)
    inputs = (torch.from_numpy(x0), torch.from_numpy(noise), torch.from_numpy(timesteps))
    alpha, sigma, target_noise, target_latents = (
        part[:, None, None, None] for part in coefficients(abar[timesteps], "v_prediction")
    )
    np.testing.assert_allclose(alpha * x0 + sigma * noise, scheduler.add_noise(*inputs).numpy(), atol=1e-5)
    np.testing.assert_allclose(
        target_noise * noise + target_latents * x0, scheduler.get_velocity(*inputs).numpy(), atol=1e-5
    )


@pytest.mark.reference
def test_min_snr_of_epsilon_and_v_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.training_utils import compute_snr

    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ratio = compute_snr(scheduler, torch.arange(1000)).numpy()
    np.testing.assert_allclose(loss_weights(ABAR, "epsilon", 5.0), np.minimum(ratio, 5) / ratio, rtol=1e-4)
    np.testing.assert_allclose(loss_weights(ABAR, "v_prediction", 5.0), np.minimum(ratio, 5) / (ratio + 1), rtol=1e-4)
