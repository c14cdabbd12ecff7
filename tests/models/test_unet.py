"""Every UNet of the family against diffusers: all blocks of the released models, narrow (DESIGN, promise 1)."""

from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from gm.models.architecture import UNET, UNetArchitecture
from gm.models.build import build_unet
from gm.models.conditioner import conditioning_vector
from gm.weights.detect import KNOWN_UNETS
from gm.weights.load import load_into

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as single_file  # noqa: E402

from tests.models import reference  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.slow]

POOLED = 64  # width of the pooled text
DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
# What the ``unet/config.json`` of the released models says of their blocks, widths aside.
SDXL = dict(
    down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
    up_block_types=[CROSS_UP, CROSS_UP, UP],
    block_out_channels=[64, 128, 192],
    attention_head_dim=[1, 2, 3],
    transformer_layers_per_block=[1, 2, 10],
    cross_attention_dim=96,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=POOLED + 6 * 256,
)
SD = dict(
    down_block_types=[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP, CROSS_UP, CROSS_UP],
    block_out_channels=[64, 128, 256, 256],
    attention_head_dim=8,
    cross_attention_dim=40,
)
RELEASED = {
    "sdxl-base": SDXL,
    "sdxl-refiner": SDXL
    | dict(
        down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
        up_block_types=[UP, CROSS_UP, CROSS_UP, UP],
        block_out_channels=[64, 128, 256, 256],
        attention_head_dim=[1, 2, 4, 4],
        transformer_layers_per_block=4,
        cross_attention_dim=80,
        projection_class_embeddings_input_dim=POOLED + 5 * 256,
    ),
    "ssd-1b": SDXL
    | dict(
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 2, 4],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    ),
    "vega": SDXL
    | dict(
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 1, 2],
        reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1],
    ),
    "sd-1": SD,
    "sd-2": SD | dict(attention_head_dim=[1, 2, 4, 4], cross_attention_dim=64, use_linear_projection=True),
}
# What sets the other kinds apart from SDXL base, with the fewest blocks.
SMALL = {
    "sdxl-refiner": dict(layers_per_block=1, transformer_layers_per_block=1),
    "ssd-1b": dict(
        transformer_layers_per_block=[1, 1, 1], reverse_transformer_layers_per_block=[[1, 1, 2], [2, 1, 1], 1]
    ),
    "sd-1": dict(layers_per_block=1),
}


def narrow(name: str, config: dict) -> UNetArchitecture:
    """Our architecture of that name at the configuration's widths."""
    return replace(
        KNOWN_UNETS[name],
        channels=tuple(config["block_out_channels"]),
        context_dim=config["cross_attention_dim"],
        vector_dim=config.get("projection_class_embeddings_input_dim"),
    )


def reference_unet(config: dict) -> "torch.nn.Module":
    torch.manual_seed(1)
    groups = min(32, config["block_out_channels"][0] // 4)
    return reference.randomize(diffusers.UNet2DConditionModel(norm_num_groups=groups, **config), 2)


def time_ids(name: str, theirs: "torch.nn.Module") -> "torch.Tensor":
    """Two pictures' size numbers, from the functions of diffusers' pipelines for the model."""
    pipelines = diffusers.pipelines.stable_diffusion_xl
    pictures = [((1024, 768), (0, 13), (512, 640)), ((31, 4000), (7, 0), (64, 64))]
    rows = []
    for number, (original, crop, target) in enumerate(pictures):
        pipeline = SimpleNamespace(unet=theirs, config=SimpleNamespace(requires_aesthetics_score=True))
        if name == "sdxl-refiner":
            function = pipelines.pipeline_stable_diffusion_xl_img2img.StableDiffusionXLImg2ImgPipeline._get_add_time_ids
            scores = (6.0 - number, 2.5)
            row, _ = function(pipeline, original, crop, target, *scores, original, crop, target, torch.float32, POOLED)
        else:
            function = pipelines.pipeline_stable_diffusion_xl.StableDiffusionXLPipeline._get_add_time_ids
            row = function(pipeline, original, crop, target, torch.float32, POOLED)
        rows.append(row)
    return torch.cat(rows)


class Denoiser(ms.nn.Cell):
    """The UNet behind the inputs that diffusers' has: pooled text and size numbers instead of a vector."""

    def __init__(self, unet: ms.nn.Cell):
        super().__init__(auto_prefix=False)
        self.unet = unet

    def construct(self, latents, timesteps, context, *added):
        vector = None
        if len(added) == 2:
            vector = conditioning_vector(added[0], added[1])
        return self.unet(latents, timesteps, context, vector)


def layers_of_ours(unet: ms.nn.Cell) -> list[str]:
    """Every residual block, spatial transformer and resampling, and what stands before and behind them, in order."""
    places = ["time_embed.2"] + ["label_emb.0.2"] * (unet.arch.vector_dim is not None)
    for name in ("input_blocks", "middle_block", "output_blocks"):
        blocks = getattr(unet, name)
        if name == "middle_block":
            places += [f"{name}.{layer}" for layer in range(len(blocks))]
        else:
            places += [f"{name}.{block}.{layer}" for block in range(len(blocks)) for layer in range(len(blocks[block]))]
    return places + ["out.2"]


def layers_of_theirs(unet: "torch.nn.Module") -> dict:
    """The same of diffusers; forward hooks find out the order."""
    ends = ("time_embedding", "add_embedding", "conv_in", "conv_out")
    kinds = ("ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D")
    return {name: module for name, module in unet.named_modules() if name in ends or type(module).__name__ in kinds}


def compare(name: str, config: dict, arch: UNetArchitecture | None, folder) -> None:
    """Layers, output and gradients; ``arch``: what the converted file must be recognised as."""
    theirs = reference_unet(config)
    rng = np.random.default_rng(3)
    latents, context, pooled = (
        rng.normal(size=shape) for shape in ((2, 4, 8, 16), (2, 77, config["cross_attention_dim"]), (2, POOLED))
    )
    timesteps, slopes = np.array([3.0, 987.0]), rng.normal(size=latents.shape)
    inputs, added = [latents, timesteps, context], None
    if "addition_embed_type" in config:
        numbers = time_ids(name, theirs)
        inputs += [pooled, numbers.numpy()]
        added = {"text_embeds": torch.tensor(pooled).float(), "time_ids": numbers}
    with reference.watch(layers_of_theirs(theirs)) as expected:
        output = theirs(
            torch.tensor(latents).float(),
            torch.tensor(timesteps),
            torch.tensor(context).float(),
            added_cond_kwargs=added,
        ).sample
    (output * torch.tensor(slopes).float()).sum().backward()

    with reference.converted({"unet": theirs}, folder) as weights:
        found = weights.architecture().unet
        assert arch in (None, found)
        ours = build_unet(found)
        load_into(ours, weights)
    seen = reference.record(ours, layers_of_ours(ours), expected)
    result, gradients = reference.differentiate(Denoiser(ours), ours, slopes, list(map(reference.tensor, inputs)))
    reference.assert_same_course(seen(), expected)
    reference.assert_close(result, output)
    assert all(name.startswith(UNET) for name in gradients)
    assert len(gradients) == len(list(theirs.parameters()))
    reference.assert_gradients_close(single_file.convert_ldm_unet_checkpoint(gradients, theirs.config), theirs)


@pytest.mark.parametrize("name", [name for name in RELEASED if name != "sdxl-base"])
def test_all_blocks_equal_diffusers(name, tmp_path):
    """One kernel after the other: a graph of so many blocks takes minutes to compile, and SDXL base has the most."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    compare(name, RELEASED[name], narrow(name, RELEASED[name]), tmp_path)


def test_the_compiled_sdxl_equals_diffusers(tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    compare("sdxl-base", SDXL, narrow("sdxl-base", SDXL), tmp_path)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_one_of_each_kind_compiled_equals_diffusers(name, tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    compare(name, RELEASED[name] | SMALL[name], None, tmp_path)
