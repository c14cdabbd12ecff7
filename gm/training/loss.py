"""The one loss body: whatever trains or evaluates the denoiser goes through ``DiffusionLoss``."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.models.conditioner import conditioning_vector

# The fields of a batch in the order of ``DiffusionLoss.construct``.
BATCH_FIELDS = (
    "moments",
    "posterior_noise",
    "noise",
    "input_noise",
    "context",
    "pooled",
    "time_ids",
    "timesteps",
    "alpha",
    "sigma",
    "target_noise",
    "target_latents",
    "weight",
    "inverse_huber_c",
)


def sample_posterior(moments: Tensor, noise: Tensor) -> Tensor:
    """A draw from the autoencoder's diagonal Gaussian: ``moments`` (B, 2C, h, w), ``noise`` (B, C, h, w).

    The log-variance is clipped to [-30, 20] as in the original code (CompVis ``DiagonalGaussianDistribution``).
    """
    mean, logvar = ops.split(moments, noise.shape[1], axis=1)
    return mean + ops.exp(0.5 * ops.clip_by_value(logvar, -30.0, 20.0)) * noise


def per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)


def robust_square(error: Tensor, inverse_c: Tensor) -> Tensor:
    """The pseudo-Huber loss 2c (sqrt(error^2 + c^2) - c), which grows linearly where the error is above c.

    The robust loss of Khrapov et al. 2024 (arXiv 2403.16728), scaled to be error^2 for small errors. Written in 1/c, so
    that 1/c = 0 is error^2 to the last bit and small errors are not lost in the difference.
    """
    scaled = error * inverse_c
    return error * error * (2.0 / (1.0 + ops.sqrt(1.0 + scaled * scaled)))


class DiffusionLoss(nn.Cell):
    """Weighted loss of the UNet's prediction, in float32. What the objective is, the batch says: one graph serves all.

    With ``x0`` the scaled latents: ``noisy = alpha x0 + sigma input_noise`` and the target is ``target_noise noise +
    target_latents x0`` (``gm.diffusion.objective`` has the coefficients of each prediction type); ``input_noise`` is
    ``noise`` unless the input is perturbed. The loss is ``robust_square``; with ``inverse_huber_c`` 0 the squared one.

    Shapes: ``moments`` (B, 8, h, w); ``posterior_noise``, ``noise``, ``input_noise`` (B, 4, h, w); ``context``
    (B, 77, C); ``pooled`` (B, P); ``time_ids`` (B, N); the rest (B,) float32. Returns the weighted loss and the plain
    squared error, both means over the batch.
    """

    def __init__(self, unet: nn.Cell, scale_factor: float, with_vector: bool = True):
        super().__init__(auto_prefix=False)
        self.unet = unet
        self.scale_factor = scale_factor
        self.with_vector = with_vector

    def construct(
        self,
        moments: Tensor,
        posterior_noise: Tensor,
        noise: Tensor,
        input_noise: Tensor,
        context: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
        timesteps: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        target_noise: Tensor,
        target_latents: Tensor,
        weight: Tensor,
        inverse_huber_c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        latents = sample_posterior(moments, posterior_noise) * self.scale_factor
        noisy = per_sample(alpha) * latents + per_sample(sigma) * input_noise
        target = per_sample(target_noise) * noise + per_sample(target_latents) * latents
        vector = None
        if self.with_vector:
            vector = conditioning_vector(pooled, time_ids)
        prediction = self.unet(noisy, timesteps, context, vector)
        error = prediction.astype(ms.float32) - target
        losses = ops.mean(robust_square(error, per_sample(inverse_huber_c)), axis=(1, 2, 3))
        return ops.mean(losses * weight), ops.mean(error * error)
