"""Train the tiny model's autoencoder from nothing, on pictures of the tiny world and on free ones.

    python -m demo.tiny.train_autoencoder --save_path runs/tiny/autoencoder.ckpt

Reconstruction is L1 plus squared error plus the L1 of the neighbouring differences (edges), with a breath of KL to keep
the latents bounded. Most steps see random crops: a quarter of the cost, and the shapes are local. At the end the
latents' spread is folded into the 1x1 convolutions around them, so that SDXL's scale factor holds here as well.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from demo.tiny import world
from gm.config.flags import Parser, positive
from gm.errors import run_door
from gm.models.architecture import TINY_SDXL
from gm.models.autoencoder import Autoencoder, AutoencoderEncoder
from gm.models.build import build_autoencoder
from gm.training.adamw import AdamW
from gm.training.gradients import clip_factor, global_norm, scale
from gm.training.loss import sample_posterior
from gm.training.lr import learning_rate
from gm.weights.load import write_parameters

SEED = 0
EDGES, KL = 0.5, 1e-6
CROP, WHOLE = 32, 64


class ReconstructionLoss(nn.Cell):
    """What the autoencoder is trained on: (B, 3, H, W) pictures, (B, 4, H/8, W/8) noise -> loss and L1."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__(auto_prefix=False)
        self.autoencoder = autoencoder

    def construct(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.autoencoder.encode(pictures)
        error = self.autoencoder.decode(sample_posterior(moments, noise)) - pictures
        absolute = error.abs().mean()
        edges = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
        edges = edges + (error[:, :, :, 1:] - error[:, :, :, :-1]).abs().mean()
        mean, logvar = ops.split(moments, noise.shape[1], axis=1)
        divergence = 0.5 * (mean * mean + ops.exp(logvar) - 1.0 - logvar).mean()
        return absolute + (error * error).mean() + EDGES * edges + KL * divergence, absolute


class AutoencoderStep(nn.Cell):
    """One clipped AdamW update; returns the L1."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__(auto_prefix=False)
        loss = ReconstructionLoss(autoencoder)
        self.optimizer = AdamW(autoencoder.trainable_params(), beta2=0.99, weight_decay=1e-4)
        self.gradients = ops.value_and_grad(loss, None, self.optimizer.trained, has_aux=True)

    def construct(self, pictures: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
        (_, absolute), grads = self.gradients(pictures, noise)
        grads = scale(grads, clip_factor(global_norm(grads), 1.0))
        return ops.depend(absolute, self.optimizer(grads, lr))


def start_as_shortcuts(autoencoder: Autoencoder) -> None:
    """Let every residual branch begin at zero: the untrained network is then nearly linear, and learns at once."""
    for parameter in autoencoder.get_parameters():
        if parameter.name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            parameter.set_data(ops.zeros_like(parameter))
        if parameter.name.endswith("encoder.conv_out.bias"):
            value = parameter.asnumpy()
            value[value.size // 2 :] = -6.0  # log-variance: almost no noise to begin with
            parameter.set_data(Tensor(value))


def draw_pictures(count: int, seed: int) -> np.ndarray:
    """Half of the base world, half free pictures: (count, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    drawn = [item.picture for item in world.base_world(count // 2, seed)]
    drawn += [world.free_picture(rng) for _ in tqdm(range(count - len(drawn)), desc="drawing", unit="picture")]
    return np.stack([np.asarray(picture) for picture in drawn]).transpose(0, 3, 1, 2)


def crops(pictures: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of each, as float32 in [-1, 1]: (B, 3, size, size)."""
    tops, lefts = rng.integers(0, pictures.shape[-1] - size + 1, (2, len(pictures)))
    cut = [picture[:, y : y + size, x : x + size] for picture, y, x in zip(pictures, tops, lefts)]
    return np.stack(cut).astype(np.float32) / 127.5 - 1.0


def fold_scale(autoencoder: Autoencoder, pictures: np.ndarray) -> None:
    """Give the latents mean 0 and spread 1 / scale factor, by the 1x1 convolutions around them; pictures stay."""
    encoder = AutoencoderEncoder(autoencoder)
    moments = [encoder(Tensor(batch.astype(np.float32) / 127.5 - 1.0)).asnumpy() for batch in np.split(pictures, 16)]
    means = np.concatenate(moments)[:, :4]
    centre, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    gain = 1.0 / (spread * autoencoder.arch.scale_factor)
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    weight, bias = quant.weight.asnumpy(), quant.bias.asnumpy()
    weight[:4] *= gain[:, None, None, None]
    bias[:4] = (bias[:4] - centre) * gain
    bias[4:] += 2 * np.log(gain)
    quant.weight.set_data(Tensor(weight))
    quant.bias.set_data(Tensor(bias))
    old = post.weight.asnumpy()
    post.bias.set_data(Tensor(post.bias.asnumpy() + (old[:, :, 0, 0] @ centre)))
    post.weight.set_data(Tensor(old / gain[None, :, None, None]))


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--save_path", default="runs/tiny/autoencoder.ckpt")
    parser.add_argument("--steps", type=positive, default=5000)
    parser.add_argument("--whole_part", type=float, default=0.15, help="part of the steps that see whole pictures")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--batch_size", type=positive, default=16, help="of crops; half of it for whole pictures")
    options = parser.parse(arguments)
    ms.set_context(mode=ms.GRAPH_MODE)
    pictures = draw_pictures(8192, SEED)
    autoencoder = build_autoencoder(TINY_SDXL.autoencoder, seed=SEED)
    start_as_shortcuts(autoencoder)
    step = AutoencoderStep(autoencoder)
    step.set_train()
    rng = np.random.default_rng(SEED)
    bar = tqdm(range(options.steps), unit="step")
    average, started = 0.0, time.monotonic()
    for index in bar:
        whole = index >= options.steps * (1 - options.whole_part)
        size, count = (WHOLE, options.batch_size // 2) if whole else (CROP, options.batch_size)
        batch = crops(pictures[rng.integers(0, len(pictures), count)], size, rng)
        noise = rng.standard_normal((count, 4, size // 8, size // 8), dtype=np.float32)
        lr = learning_rate("cosine", index, options.learning_rate, warmup_steps=100, total_steps=options.steps)
        loss = float(step(Tensor(batch), Tensor(noise), Tensor(lr, ms.float32)).asnumpy())
        average = loss if index == 0 else 0.98 * average + 0.02 * loss
        bar.set_postfix(l1=f"{average:.4f}")
        if (index + 1) % 500 == 0:
            write_parameters(options.save_path, autoencoder.get_parameters())
    fold_scale(autoencoder, pictures[::8])
    write_parameters(options.save_path, autoencoder.get_parameters())
    print(f"autoencoder: L1 {average:.4f} after {time.monotonic() - started:.0f} s, saved to {options.save_path}")


if __name__ == "__main__":
    run_door(main)
