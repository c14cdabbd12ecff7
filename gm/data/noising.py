"""How samples are noised, and what their prediction is held to: the settings of ``diffusion`` as numbers of a batch."""

from collections.abc import Callable

import numpy as np

from gm.config.sections.training import DiffusionConfig
from gm.diffusion import objective, schedule, timesteps
from gm.diffusion.steps import sigma_to_timestep, sigmas

Rng = Callable[[str], np.random.Generator]


class Noising:
    """The noise schedule, the draw of noise levels and the objective; everything a sample draws comes from its ``rng``.

    Raises:
        ValueError: settings that make no schedule, draw or objective.
    """

    def __init__(self, config: DiffusionConfig):
        self._config = config
        betas = schedule.betas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
        if config.rescale_betas_zero_snr:
            betas = schedule.rescale_zero_terminal_snr(betas)
        self._alphas_cumprod = schedule.alphas_cumprod(betas)
        objective.check_prediction_type(config.prediction_type, self._alphas_cumprod)
        self._range = trained_range(config)
        self._timestep_weights = timesteps.bias_weights(
            config.timestep_bias_strategy,
            config.num_train_timesteps,
            config.timestep_bias_multiplier,
            config.timestep_bias_begin,
            config.timestep_bias_end,
            config.timestep_bias_portion,
        ) * timesteps.range_mask(config.num_train_timesteps, *self._range)
        self.numbers(np.zeros(1), np.ones(1))  # what cannot work fails here, not in a thread that reads ahead

    def noise(self, rng: Rng, shape: tuple[int, int, int], step: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise of one sample, and the noise its input gets, which is the same unless the input is perturbed.

        ``noise_offset`` puts a constant of its own on each channel (with ``noise_offset_probability``). The target
        stays free of ``input_perturbation`` (Ning et al. 2023, arXiv 2301.11706), which fades linearly to nothing over
        ``input_perturbation_steps`` optimizer steps; ``step`` of them are done.
        """
        config = self._config
        noise = rng("noise").standard_normal(shape, np.float32)
        probability = config.noise_offset_probability
        if config.noise_offset and (probability == 1 or rng("noise_offset_probability").random() < probability):
            noise += np.float32(config.noise_offset) * rng("noise_offset").standard_normal((shape[0], 1, 1), np.float32)
        perturbation = config.input_perturbation
        if config.input_perturbation_steps:
            perturbation *= max(0.0, 1.0 - step / config.input_perturbation_steps)
        if not perturbation:
            return noise, noise
        return noise, noise + np.float32(perturbation) * rng("input_perturbation").standard_normal(shape, np.float32)

    def numbers(self, uniforms: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Timesteps of uniforms (B,) with the coefficients and loss weights that belong to them: each (B,) float32."""
        config = self._config
        drawn, abar = self._levels(uniforms)
        coefficients = objective.coefficients(abar, config.prediction_type)
        weighting = (config.snr_gamma, config.loss_weighting, config.loss_weight_floor)
        weights = weights * objective.loss_weights(abar, config.prediction_type, *weighting)
        inverse_huber_c = np.zeros_like(abar)
        if config.loss_type != "l2":
            inverse_huber_c = 1.0 / objective.huber_c(
                config.huber_schedule, config.huber_c, drawn, abar, config.num_train_timesteps
            )
        if config.loss_type == "smooth_l1":
            weights = weights * inverse_huber_c  # 2 (sqrt(error^2 + c^2) - c) is the Huber loss over c
        numbers = {"timesteps": drawn, **coefficients._asdict(), "weight": weights, "inverse_huber_c": inverse_huber_c}
        return {name: values.astype(np.float32) for name, values in numbers.items()}

    def _levels(self, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps, fractional where sigma is drawn, and abar of each uniform: (B,) both."""
        config = self._config
        if config.sigma_sampling == "discrete":
            drawn = timesteps.draw(self._timestep_weights, uniforms)
            return drawn, self._alphas_cumprod[drawn]
        begin, end = self._range
        low, high = sigmas(self._alphas_cumprod[[begin, end - 1]])
        sigma = timesteps.draw_sigmas(uniforms, config.edm_p_mean, config.edm_p_std, low, high)
        return sigma_to_timestep(sigma, self._alphas_cumprod), 1.0 / (1.0 + sigma**2)


def describe(config: DiffusionConfig) -> str:
    """The objective in a line: what is predicted, at which noise levels, and how it counts."""
    begin, end = trained_range(config)
    parts = [f"{config.prediction_type} at timesteps {begin} to {end - 1} of {config.num_train_timesteps}"]
    if config.sigma_sampling == "edm":
        parts.append(f"ln sigma of mean {config.edm_p_mean:g} and deviation {config.edm_p_std:g}")
    if config.timestep_bias_strategy != "none":
        parts.append(f"{config.timestep_bias_strategy} ones {config.timestep_bias_multiplier:g} times as often")
    weighting = config.loss_weighting or ("min_snr" if config.snr_gamma else None)
    if weighting:
        parts.append(f"{weighting} weighting")
    if config.loss_type != "l2":
        parts.append(f"{config.loss_type} loss")
    if config.rescale_betas_zero_snr:
        parts.append("zero terminal SNR")
        if weighting and not config.loss_weight_floor and end == config.num_train_timesteps:
            parts.append("whose last timestep weighs nothing (--loss_weight_floor 0.1 would let it count)")
    return ", ".join(parts)


def trained_range(config: DiffusionConfig) -> tuple[int, int]:
    """The first timestep that is trained, and the first one after the last."""
    if not config.refiner_training:
        return 0, config.num_train_timesteps
    return timesteps.expert_range(
        config.num_train_timesteps, config.refiner_training_strength, config.refiner_training_invert_schedule
    )
