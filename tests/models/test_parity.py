"""The networks against diffusers, with the same random weights (DESIGN, promise 1)."""

import mindspore as ms
import numpy as np
import pytest

import gm  # noqa: F401  (sets the environment that MindSpore reads)
from gm.models import architecture as shapes
from gm.models.autoencoder import AutoencoderDecoder, AutoencoderEncoder
from gm.models.build import (
    AUTOENCODER_PREFIX,
    UNET_PREFIX,
    build_autoencoder,
    build_unet,
)
from gm.models.conditioner import conditioning_vector

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as single_file  # noqa: E402

pytestmark = pytest.mark.reference

TOLERANCE = 1e-4  # largest error, relative to the largest value
GRADIENT_TOLERANCE = 1e-3  # norm of the error of a parameter's gradient, relative to the gradient's

TINY = shapes.TINY_SDXL
UNETS = {
    "tiny-sdxl": TINY.unet,
    "ssd-1b-like": shapes.UNetArchitecture(
        channels=(32, 64, 128),
        down_depths=((0, 0), (2, 2), (1, 1)),
        mid_depth=None,
        up_depths=((1, 1, 3), (2, 1, 1), (0, 0, 0)),
        context_dim=48,
        vector_dim=64,
    ),
    "sd-1-like": shapes.UNetArchitecture(
        channels=(32, 64, 64, 64),
        down_depths=((1, 1), (1, 1), (1, 1), (0, 0)),
        mid_depth=1,
        up_depths=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        context_dim=40,
        vector_dim=None,
        num_heads=8,
        linear_projection=False,
    ),
}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def shake(cell: ms.nn.Cell, seed: int) -> None:
    """Give values to norms, biases and what begins at zero, so that leaving one out cannot go unseen."""
    rng = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        value = parameter.asnumpy()
        if value.ndim == 1 or not value.any():
            value = value + 0.2 * rng.normal(size=value.shape) / np.sqrt(max(1, value[0].size))
            parameter.set_data(ms.Tensor(value.astype(np.float32)))


def state_dict(cell: ms.nn.Cell, prefix: str, keep: str = "") -> dict:
    return {
        keep + p.name.removeprefix(prefix): torch.from_numpy(p.asnumpy().copy())
        for p in cell.get_parameters()
        if p.name.startswith(prefix)
    }


def tensor(array: np.ndarray, dtype=np.float32) -> ms.Tensor:
    return ms.Tensor(np.asarray(array, dtype))


def assert_close(ours: ms.Tensor, theirs: "torch.Tensor") -> None:
    ours, theirs = ours.asnumpy(), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def diffusers_unet_config(arch: shapes.UNetArchitecture) -> dict:
    """The same network in diffusers' words, written out here so that it does not depend on our own layout rules."""
    heads = [arch.num_heads or max(1, width // 64) for width in arch.channels]
    has = [any(depths) for depths in arch.down_depths]
    config = dict(
        in_channels=4,
        out_channels=4,
        block_out_channels=arch.channels,
        layers_per_block=len(arch.down_depths[0]),
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has],
        up_block_types=["CrossAttnUpBlock2D" if any(d) else "UpBlock2D" for d in arch.up_depths],
        mid_block_type="UNetMidBlock2D" if arch.mid_depth is None else "UNetMidBlock2DCrossAttn",
        transformer_layers_per_block=[max(depths[0], 1) for depths in arch.down_depths],
        attention_head_dim=heads,
        cross_attention_dim=arch.context_dim,
        norm_num_groups=arch.norm_groups,
        use_linear_projection=arch.linear_projection,
    )
    if len({depths for depths in arch.up_depths for depths in depths}) > 2:
        config["reverse_transformer_layers_per_block"] = [
            list(depths) if any(depths) else 1 for depths in arch.up_depths
        ]
    if arch.vector_dim is not None:
        config |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=arch.vector_dim,
        )
    return config


def reference_unet(arch: shapes.UNetArchitecture, ours: ms.nn.Cell) -> "torch.nn.Module":
    config = diffusers_unet_config(arch)
    theirs = diffusers.UNet2DConditionModel(**config).eval()
    checkpoint = state_dict(ours, UNET_PREFIX, UNET_PREFIX)
    converted = single_file.convert_ldm_unet_checkpoint(checkpoint, theirs.config)
    theirs.load_state_dict(converted, strict=True)
    return theirs


class Probe(ms.nn.Cell):
    """A scalar with a different slope for every output, so that every gradient has to be right."""

    def __init__(self, network: ms.nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, slopes, *inputs):
        return (self.network(*inputs) * slopes).sum()


class Gradients(ms.nn.Cell):
    def __init__(self, network: ms.nn.Cell, trained: list):
        super().__init__(auto_prefix=False)
        self.probe = Probe(network)
        self.trained = ms.ParameterTuple(trained)
        self.gradients = ms.ops.GradOperation(get_by_list=True)

    def construct(self, slopes, *inputs):
        return self.gradients(self.probe, self.trained)(slopes, *inputs)


def our_gradients(network: ms.nn.Cell, owner: ms.nn.Cell, prefix: str, slopes, *inputs) -> dict:
    """Gradients of all parameters of ``owner`` under their names, as torch tensors (zeros where unused)."""
    trained = owner.trainable_params()
    gradients = Gradients(network, trained)(slopes, *inputs)
    named = zip((p.name for p in trained), gradients)
    return {name: torch.from_numpy(value.asnumpy().copy()) for name, value in named if name.startswith(prefix)}


def assert_gradients_close(ours: dict, theirs: "torch.nn.Module") -> None:
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    assert len(expected) > 20
    # A key's bias has no gradient at all (softmax ignores it): what is computed there is rounding.
    rounding = 1e-6 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (ours[name].reshape(gradient.shape) - gradient).norm()
        assert error <= GRADIENT_TOLERANCE * gradient.norm() + rounding, name


@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_diffusers(name):
    arch = UNETS[name]
    ours = build_unet(arch, seed=1)
    shake(ours, 2)
    theirs = reference_unet(arch, ours)
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(2, 4, 16, 24))
    context = rng.normal(size=(2, 77, arch.context_dim))
    timesteps = np.array([3.0, 987.0])
    inputs = [tensor(latents), tensor(timesteps), tensor(context)]
    added = None
    if arch.vector_dim is not None:
        # diffusers embeds the six numbers inside the network; a vector without numbers tests the rest of the path.
        vector = rng.normal(size=(2, arch.vector_dim))
        inputs.append(tensor(vector))
        added = {"text_embeds": torch.tensor(vector).float(), "time_ids": torch.zeros(2, 0)}
    expected = theirs(
        torch.tensor(latents).float(), torch.tensor(timesteps), torch.tensor(context).float(), added_cond_kwargs=added
    ).sample
    assert_close(ours(*inputs), expected)

    slopes = rng.normal(size=expected.shape)
    (expected * torch.tensor(slopes).float()).sum().backward()
    gradients = our_gradients(ours, ours, UNET_PREFIX, tensor(slopes), *inputs)
    assert_gradients_close(single_file.convert_ldm_unet_checkpoint(gradients, theirs.config), theirs)


def test_conditioning_vector_equals_diffusers():
    rng = np.random.default_rng(4)
    pooled = rng.normal(size=(2, 64))
    time_ids = np.array([[1024, 768, 0, 13, 512, 640], [31, 4000, 7, 0, 64, 64]])
    theirs = diffusers.models.embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    expected = torch.cat(
        [torch.tensor(pooled).float(), theirs(torch.tensor(time_ids).flatten().float()).reshape(2, -1)], dim=1
    )
    assert_close(conditioning_vector(tensor(pooled), tensor(time_ids)), expected)


def test_autoencoder_equals_diffusers():
    arch = TINY.autoencoder
    ours = build_autoencoder(arch, seed=5)
    shake(ours, 6)
    levels = len(arch.channels)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=arch.channels,
        layers_per_block=arch.blocks_per_level,
        norm_num_groups=arch.norm_groups,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4,
    ).eval()
    checkpoint = state_dict(ours, AUTOENCODER_PREFIX, AUTOENCODER_PREFIX)
    theirs.load_state_dict(single_file.convert_ldm_vae_checkpoint(checkpoint, theirs.config), strict=True)
    rng = np.random.default_rng(7)
    pictures, latents = rng.uniform(-1, 1, (2, 3, 64, 48)), rng.normal(size=(2, 4, 8, 6))
    moments = theirs.encode(torch.tensor(pictures).float()).latent_dist.parameters
    decoded = theirs.decode(torch.tensor(latents).float()).sample
    for network, given, expected in (
        (AutoencoderEncoder(ours), pictures, moments),
        (AutoencoderDecoder(ours), latents, decoded),
    ):
        assert_close(network(tensor(given)), expected)
        slopes = rng.normal(size=expected.shape)
        theirs.zero_grad()
        (expected * torch.tensor(slopes).float()).sum().backward()
        gradients = our_gradients(network, ours, AUTOENCODER_PREFIX, tensor(slopes), tensor(given))
        assert_gradients_close(single_file.convert_ldm_vae_checkpoint(gradients, theirs.config), theirs)
