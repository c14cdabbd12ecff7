"""Twenty steps of training equal diffusers and torch: the same weights, noise and timesteps, losses and updates.

What stands on the other side is the loop of diffusers' ``train_text_to_image_sdxl.py``: its scheduler, its SNR weights,
its learning rates, torch's clipping and AdamW. One compiled step serves all objectives, as they are inputs.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from gm.diffusion import objective, schedule
from gm.models.architecture import UNetArchitecture
from gm.models.build import build_unet
from gm.training.adamw import AdamW
from gm.training.loss import DiffusionLoss
from gm.training.lr import learning_rate
from gm.training.step import AccumulatingStep, TrainStep, tensors
from gm.weights.load import load_into

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as single_file  # noqa: E402
from diffusers.optimization import get_scheduler  # noqa: E402
from diffusers.training_utils import compute_snr  # noqa: E402

from tests.models import reference  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.slow]

STEPS, BATCH, WARMUP = 20, 4, 3
PEAK, DECAY, MAX_NORM, SCALE = 1e-4, 1e-2, 0.1, 0.13025
CONTEXT, POOLED, NUMBERS = 16, 8, 6
ARCHITECTURE = UNetArchitecture(
    channels=(32, 64),
    down_depths=((0,), (1,)),
    mid_depth=1,
    up_depths=((1, 1), (0, 0)),
    context_dim=CONTEXT,
    vector_dim=POOLED + 256 * NUMBERS,
)


def diffusers_unet() -> "torch.nn.Module":
    torch.manual_seed(1)
    network = diffusers.UNet2DConditionModel(
        block_out_channels=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        attention_head_dim=[1, 1],
        transformer_layers_per_block=1,
        cross_attention_dim=CONTEXT,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED + 256 * NUMBERS,
        norm_num_groups=8,
    )
    return reference.randomize(network, 2)


class Ours:
    """The UNet with the reference's weights, and its steps; ``restart`` puts all back to the first day."""

    def __init__(self, folder):
        self.unet = build_unet(ARCHITECTURE)
        with reference.converted({"unet": diffusers_unet()}, folder) as weights:
            load_into(self.unet, weights)
        self.trained = self.unet.trainable_params()
        self.optimizer = AdamW(self.trained, weight_decay=DECAY)
        loss = DiffusionLoss(self.unet, SCALE)
        self.steps = {
            1: TrainStep(loss, self.optimizer, MAX_NORM),
            2: AccumulatingStep(loss, self.optimizer, MAX_NORM, None, 2),
        }
        self.first = [parameter.asnumpy().copy() for parameter in (*self.trained, *self.optimizer.state)]

    def restart(self) -> None:
        for parameter, value in zip((*self.trained, *self.optimizer.state), self.first):
            ops.assign(parameter, Tensor(value))

    def weights(self, like: "torch.nn.Module") -> dict[str, np.ndarray]:
        """Under the reference's names."""
        named = {p.name: torch.from_numpy(p.asnumpy().copy()) for p in self.trained}
        return single_file.convert_ldm_unet_checkpoint(named, like.config)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    ms.set_context(mode=ms.GRAPH_MODE)
    return Ours(tmp_path_factory.mktemp("reference"))


def draw(step: int) -> dict[str, np.ndarray]:
    """What is random in a step, whatever the objective."""
    rng = np.random.default_rng(step)
    arrays = {
        "moments": rng.normal(size=(BATCH, 8, 8, 8)) * 4,
        "posterior_noise": rng.normal(size=(BATCH, 4, 8, 8)),
        "noise": rng.normal(size=(BATCH, 4, 8, 8)),
        "context": rng.normal(size=(BATCH, 5, CONTEXT)),
        "pooled": rng.normal(size=(BATCH, POOLED)),
        "time_ids": rng.integers(0, 64, size=(BATCH, NUMBERS)),
        "timesteps": rng.integers(0, 1000, size=BATCH),
    }
    arrays["moments"][:, 4:] -= 8  # log-variances as an autoencoder's: small
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def batch_for_ours(drawn: dict[str, np.ndarray], prediction_type: str, gamma: float | None) -> dict[str, np.ndarray]:
    abar = schedule.alphas_cumprod(schedule.betas("scaled_linear", 1000, 0.00085, 0.012))
    timesteps = drawn["timesteps"].astype(int)
    weights = objective.loss_weights(abar, prediction_type, gamma)[timesteps]
    coefficients = objective.coefficients(abar[timesteps], prediction_type)._asdict()
    extra = {"input_noise": drawn["noise"], "weight": weights, "inverse_huber_c": np.zeros(BATCH), **coefficients}
    return drawn | {name: np.asarray(values, np.float32) for name, values in extra.items()}


def their_loss(unet, scheduler, drawn: dict[str, np.ndarray], gamma: float | None) -> "torch.Tensor":
    given = {name: torch.from_numpy(values) for name, values in drawn.items()}
    timesteps = given["timesteps"].long()
    mean, logvar = given["moments"].chunk(2, dim=1)
    latents = (mean + torch.exp(0.5 * logvar) * given["posterior_noise"]) * SCALE
    noisy = scheduler.add_noise(latents, given["noise"], timesteps)
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    predicted = unet(noisy, timesteps, given["context"], added_cond_kwargs=added).sample
    target, extra = given["noise"], 0
    if scheduler.config.prediction_type == "v_prediction":
        target, extra = scheduler.get_velocity(latents, given["noise"], timesteps), 1
    losses = ((predicted - target) ** 2).mean(dim=(1, 2, 3))
    if gamma is None:
        return losses.mean()
    snr = compute_snr(scheduler, timesteps)
    return (losses * torch.clamp(snr, max=gamma) / (snr + extra)).mean()


def divide(batch: dict[str, np.ndarray], parts: int) -> list[dict[str, np.ndarray]]:
    return [dict(zip(batch, piece)) for piece in zip(*(np.split(array, parts) for array in batch.values()))]


@pytest.mark.parametrize(
    ("prediction_type", "gamma", "batches"),
    [
        ("epsilon", None, 1),
        ("v_prediction", None, 1),
        ("epsilon", 5.0, 1),
        ("v_prediction", 5.0, 1),
        ("v_prediction", 5.0, 2),
    ],
)
def test_twenty_steps_equal_diffusers(ours, prediction_type, gamma, batches):
    ms.set_context(mode=ms.GRAPH_MODE)
    ours.restart()
    theirs = diffusers_unet()
    parameters = list(theirs.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )
    clipped = 0
    for step in range(STEPS):
        drawn = draw(step)
        losses = [their_loss(theirs, scheduler, part, gamma) / batches for part in divide(drawn, batches)]
        for loss in losses:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()

        lr = learning_rate("cosine", step, PEAK, WARMUP, STEPS)
        parts = [tensors(part) for part in divide(batch_for_ours(drawn, prediction_type, gamma), batches)]
        numbers = ours.steps[batches].take(parts, Tensor(lr, ms.float32)).fetch()
        assert numbers.loss == pytest.approx(sum(loss.item() for loss in losses), rel=1e-4), step
        assert numbers.grad_norm == pytest.approx(norm.item(), rel=1e-3), step
        clipped += norm.item() > MAX_NORM
    assert clipped  # else clipping has not been compared
    found, first = ours.weights(theirs), dict(diffusers_unet().named_parameters())
    moved = 0.0
    for name, parameter in theirs.named_parameters():
        error, size = (found[name].reshape(parameter.shape) - parameter).norm(), parameter.norm()
        assert error <= 1e-3 * size, f"{name}: {error / size:.1e}"
        moved = max(moved, float((parameter - first[name]).norm() / size))
    assert moved > 1e-2  # else the parameters are equal because nothing happened
