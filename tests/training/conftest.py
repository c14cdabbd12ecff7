"""A network small enough to compile in a second, and batches for it."""

import gc

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from PIL import Image

from gm.config import Config

CONTEXT, POOLED, NUMBERS = 6, 4, 6


class SmallUNet(nn.Cell):
    """The UNet's signature on a pixelwise network of two layers, which computes in ``dtype``."""

    def __init__(self, seed: int = 0, dtype: ms.Type = ms.float32, weights: ms.Type = ms.float32):
        super().__init__(auto_prefix=False)
        self.dtype = dtype
        rng = np.random.default_rng(seed)

        def parameter(name: str, *shape: int) -> Parameter:
            return Parameter(Tensor(0.3 * rng.standard_normal(shape), weights), name=f"model.{name}")

        self.inward = parameter("in.weight", 4, 8)
        self.shift = parameter("in.bias", 8)
        self.text = parameter("text.weight", CONTEXT, 8)
        self.label = parameter("label.weight", POOLED + 256 * NUMBERS, 8)
        self.outward = parameter("out.weight", 8, 4)

    def construct(self, latents: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        condition = self.times(context.mean(1), self.text) + 0.01 * self.times(vector, self.label)
        condition = condition + (0.001 * timesteps.reshape(-1, 1)).astype(self.dtype)
        hidden = self.times(latents.transpose(0, 2, 3, 1), self.inward) + self.shift.astype(self.dtype)
        hidden = ops.tanh(hidden + condition.reshape(-1, 1, 1, 8))
        return self.times(hidden, self.outward).transpose(0, 3, 1, 2)

    def times(self, x: Tensor, weight: Parameter) -> Tensor:
        return ops.matmul(x.astype(self.dtype), weight.astype(self.dtype))


def batch_of(size: int, seed: int = 0, side: int = 8) -> dict[str, np.ndarray]:
    """A batch of random arrays in the order the step takes them."""
    rng = np.random.default_rng(seed)
    alpha = np.sqrt(rng.uniform(0.1, 0.9, size))
    batch = {
        "moments": rng.standard_normal((size, 8, side, side)),
        "posterior_noise": rng.standard_normal((size, 4, side, side)),
        "noise": rng.standard_normal((size, 4, side, side)),
        "input_noise": np.zeros(()),  # set below
        "context": rng.standard_normal((size, 7, CONTEXT)),
        "pooled": rng.standard_normal((size, POOLED)),
        "time_ids": rng.integers(0, 64, (size, NUMBERS)),
        "timesteps": rng.integers(0, 1000, size),
        "alpha": alpha,
        "sigma": np.sqrt(1 - alpha**2),
        "target_noise": rng.uniform(0.5, 1, size),
        "target_latents": rng.uniform(-1, 0, size),
        "weight": rng.uniform(0.2, 2, size),
        "inverse_huber_c": np.zeros(size),
    }
    batch["input_noise"] = batch["noise"]  # as it is unless the input is perturbed
    return {name: values.astype(np.float32) for name, values in batch.items()}


@pytest.fixture(autouse=True)
def graph_mode():
    # When one compiled Cell is collected, MindSpore compiles all others anew: not in the middle of counting.
    gc.collect()
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def small_unet():
    return SmallUNet


@pytest.fixture
def make_batch():
    return batch_of


@pytest.fixture
def picture_config(tmp_path):
    """Make a configuration of training from four pictures of a size, two at a time."""

    def make(width: int, height: int) -> Config:
        config = Config()
        rng = np.random.default_rng(0)
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for index, caption in enumerate(["a red circle", "two green squares", "a blue circle on grey", "black"]):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(pictures / f"{index}.png")
            (pictures / f"{index}.txt").write_text(caption)
        config.data.path, config.data.resolution, config.data.per_batch_size = str(pictures), width, 2
        config.model.weight, config.model.tokenizer = str(tmp_path / "model.ckpt"), "demo/tiny/tokenizer"
        config.cache.path, config.cache.dtype = str(tmp_path / "cache"), "fp32"
        config.train.save_path, config.train.run_name = str(tmp_path), "run"
        return config

    return make
