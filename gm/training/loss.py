"""The one loss body: whatever trains or evaluates the denoiser goes through ``DiffusionLoss``."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.models.conditioner import conditioning_vector

# The fields of a batch in the order of ``DiffusionLoss.construct``.
BATCH_FIELDS = (
    "moments",
    "posterior_noise",
    "noise",
    "context",
    "pooled",
    "time_ids",
    "timesteps",
    "alpha",
    "sigma",
    "target_noise",
    "target_latents",
    "weight",
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


class DiffusionLoss(nn.Cell):
    """Weighted mean squared error of the UNet's prediction, in float32.

    With ``x0`` the scaled latents: ``noisy = alpha x0 + sigma noise`` and the target is ``target_noise noise +
    target_latents x0`` (``gm.diffusion.objective`` has the coefficients of each prediction type).

    Shapes: ``moments`` (B, 8, h, w); ``posterior_noise``, ``noise`` (B, 4, h, w); ``context`` (B, 77, C); ``pooled``
    (B, P); ``time_ids`` (B, 6); the rest (B,) float32. Returns the weighted loss and the plain one, both means over
    the batch.
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
        context: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
        timesteps: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        target_noise: Tensor,
        target_latents: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        latents = sample_posterior(moments, posterior_noise) * self.scale_factor
        noisy = per_sample(alpha) * latents + per_sample(sigma) * noise
        target = per_sample(target_noise) * noise + per_sample(target_latents) * latents
        vector = None
        if self.with_vector:
            vector = conditioning_vector(pooled, time_ids)
        prediction = self.unet(noisy, timesteps, context, vector)
        error = prediction.astype(ms.float32) - target
        losses = ops.mean(error * error, axis=(1, 2, 3))
        return ops.mean(losses * weight), ops.mean(losses)
