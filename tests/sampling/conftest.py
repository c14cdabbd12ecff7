import gm  # isort: skip  # noqa: F401  (sets the environment that MindSpore reads)

import numpy as np
import pytest

from gm.models.architecture import TINY_SDXL


@pytest.fixture(scope="session")
def tiny_cells():
    """UNet, autoencoder and text towers of the tiny model, with random weights of which none is zero."""
    ms = pytest.importorskip("mindspore")
    from gm.models.build import build_autoencoder, build_conditioner, build_unet

    cells = (
        build_unet(TINY_SDXL.unet, 0),
        build_autoencoder(TINY_SDXL.autoencoder, 1),
        build_conditioner(TINY_SDXL, 2),
    )
    rng = np.random.default_rng(3)
    for parameter in (parameter for cell in cells for parameter in cell.get_parameters()):
        value = parameter.asnumpy()
        if value.ndim == 1:
            value = value + 0.1 * rng.standard_normal(value.shape)
        elif not value.any():
            value = rng.standard_normal(value.shape) / np.sqrt(value[0].size)
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    return cells


@pytest.fixture(scope="session")
def shared_networks(tiny_cells):
    from gm.sampling.networks import Networks

    return Networks(TINY_SDXL, *tiny_cells)


@pytest.fixture
def tiny_networks(shared_networks):
    """The same ready to draw; what one test compiles serves the next."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    return shared_networks


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_cells, tmp_path_factory):
    """The same as a full checkpoint."""
    from gm.weights.load import write_parameters

    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    write_parameters(path, [parameter for cell in tiny_cells for parameter in cell.get_parameters()])
    return path


class FakeTokenizers:
    """Ids that tell the texts apart."""

    def __init__(self):
        self.encoded = []

    def encode(self, texts):
        self.encoded.append(list(texts))
        ids = np.array([[sum(text.encode())] * 77 for text in texts], np.int32)
        return ids, ids + 1


class FakeNetworks:
    """Numpy in place of compiled networks; what a row becomes depends on that row alone."""

    downsampling, latent_channels, scale_factor = 8, 4, 0.5

    def __init__(self, architecture=TINY_SDXL):
        self.architecture = architecture
        self.shapes = set()
        self.conditions = []
        self.timesteps = []

    def encode_text(self, *ids):
        self.shapes.add(("text", ids[0].shape))
        return np.repeat(ids[0][:, :, None] / 1000.0, 6, axis=2), ids[-1][:, :5] / 1000.0

    def denoiser(self, context, pooled, time_ids, copies):
        self.conditions.append((context, pooled, time_ids))

        def predict(latents, timestep):
            self.shapes.add(("unet", latents.shape, context.shape))
            self.timesteps.append(timestep)
            doubled = np.concatenate([latents] * copies)
            shift = context.mean(axis=(1, 2)) + pooled.mean(axis=1) + time_ids.sum(axis=1) / 1000
            return (0.9 * doubled + 0.1 * np.tanh(shift)[:, None, None, None]).astype(np.float32)

        return predict

    def decode(self, latents):
        self.shapes.add(("decoder", latents.shape))
        return np.repeat(np.repeat(latents[:, :3], 8, axis=2), 8, axis=3)

    def encode(self, pictures):
        means = pictures[:, :, ::8, ::8]
        return np.concatenate(
            [means, means[:, :1], np.full_like(means, -30.0), np.full_like(means[:, :1], -30.0)], axis=1
        )


@pytest.fixture
def networks():
    return FakeNetworks()


@pytest.fixture
def fake_networks():
    return FakeNetworks


@pytest.fixture
def tokenizers():
    return FakeTokenizers()
