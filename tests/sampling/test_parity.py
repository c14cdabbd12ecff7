"""The pictures diffusers draws from the same weights, latents and text states (within one level of 255)."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gm import compilation
from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr
from gm.models.architecture import HEAD_WIDTH, TINY_SDXL
from gm.sampling.noise import PictureNoise
from gm.sampling.pipeline import Pipeline
from gm.sampling.settings import Request, Settings

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as single_file  # noqa: E402

from tests.sampling.reference import LEVEL, autoencoder, scheduler, weights_of  # noqa: E402

pytestmark = pytest.mark.reference

REQUESTS = [Request("a red circle", 42, "blue"), Request("a green square", 7, "grey")]
# Sides that do not halve evenly: 9x13, 5x7 and 3x4. Other tests here draw squares of 64 pixels.
SIZE, LATENTS = {"height": 72, "width": 104}, (4, 9, 13)
TIME_IDS = {"orig_height": 90, "orig_width": 70, "crop_coords_top": 3, "crop_coords_left": 5}


class Tokenizers:
    """Ids made from the letters, with an end token."""

    def encode(self, texts):
        ids = np.full((len(texts), 77), TINY_SDXL.text_encoders[0].vocab_size - 1, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [3 * (ord(letter) % 200) for letter in text]
        return ids, ids


@pytest.fixture(scope="module")
def theirs(tiny_cells):
    arch = TINY_SDXL.unet
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=arch.channels,
        layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 1, 1],
        attention_head_dim=[max(1, width // HEAD_WIDTH) for width in arch.channels],  # diffusers' word for heads
        cross_attention_dim=arch.context_dim,
        norm_num_groups=arch.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=arch.vector_dim,
        sample_size=8,
    )
    unet.load_state_dict(single_file.convert_ldm_unet_checkpoint(weights_of(tiny_cells[0]), unet.config))
    return unet.eval(), autoencoder(tiny_cells[1], force_upcast=False)


def reference_pipeline(kind, theirs, chosen):
    pipeline = kind(
        vae=theirs[1], text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=theirs[0],
        scheduler=chosen, add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_states(ours, requests):
    """What both pipelines are given, by diffusers' names."""
    prompts, negatives = ([getattr(request, name) for request in requests] for name in ("prompt", "negative_prompt"))
    states = {}
    for prefix, texts in (("", prompts), ("negative_", negatives)):
        context, pooled = ours.networks.encode_text(*Tokenizers().encode(texts))
        states[f"{prefix}prompt_embeds"] = torch.from_numpy(context)
        states[f"{prefix}pooled_prompt_embeds"] = torch.from_numpy(pooled)
    return states


def sizes(settings):
    return {
        "original_size": settings.time_ids()[0:2],
        "crops_coords_top_left": settings.time_ids()[2:4],
        "target_size": settings.time_ids()[4:6],
        "height": settings.height,
        "width": settings.width,
    }


def mean_difference(ours, theirs):
    return np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).mean()


CASES = [
    ("euler", "leading", "epsilon", False),
    ("heun", "linspace", "epsilon", False),
    ("ddim", "leading", "epsilon", False),
    ("dpmpp_2m", "trailing", "v_prediction", True),
    ("unipc", "trailing", "v_prediction", False),
    ("euler", "trailing", "v_prediction", True),
]


@pytest.mark.parametrize(("sampler", "spacing", "prediction_type", "zero_terminal"), CASES)
def test_text_to_picture(tiny_networks, theirs, sampler, spacing, prediction_type, zero_terminal):
    beta = rescale_zero_terminal_snr(betas()) if zero_terminal else betas()
    ours = Pipeline(tiny_networks, Tokenizers(), alphas_cumprod(beta), prediction_type)
    settings = Settings(
        sampler, 12, spacing, guidance_scale=6.0, guidance_rescale=0.7 * zero_terminal, **SIZE, **TIME_IDS
    )
    mine = [drawn.picture for drawn in ours.sample(REQUESTS, settings, batch_size=2)]
    options = {"timestep_spacing": spacing, "prediction_type": prediction_type}
    if zero_terminal:
        options["rescale_betas_zero_snr"] = True
    pipeline = reference_pipeline(diffusers.StableDiffusionXLPipeline, theirs, scheduler(sampler, **options))
    expected = pipeline(
        **text_states(ours, REQUESTS),
        **sizes(settings),
        num_inference_steps=12,
        guidance_scale=6.0,
        guidance_rescale=settings.guidance_rescale,
        latents=torch.from_numpy(PictureNoise([42, 7], LATENTS)()),
    ).images
    assert np.std(np.asarray(expected[0])) > 5  # not a flat picture, which would say nothing
    for one, other in zip(mine, expected, strict=True):
        assert mean_difference(one, other) <= LEVEL


def test_prompts_of_a_run_share_one_graph(tiny_networks):
    ours = Pipeline(tiny_networks, Tokenizers(), alphas_cumprod(betas()))
    settings = Settings("euler", 2, guidance_scale=6.0, **SIZE)
    list(ours.sample(REQUESTS, settings, batch_size=2))
    before = compilation.done()
    more = [Request("three", 1), Request("other prompts", 2, "grey"), Request("and another", 3)]
    list(ours.sample(more, replace(settings, sampler="heun", sample_step=3, guidance_scale=3.0), batch_size=2))
    assert compilation.done() == before


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_picture_to_picture(tiny_networks, theirs, sampler, monkeypatch):
    ours = Pipeline(tiny_networks, Tokenizers(), alphas_cumprod(betas()))
    settings = Settings(sampler, 10, "leading", guidance_scale=4.0, **SIZE, strength=0.6)
    start = Image.fromarray(np.random.default_rng(3).integers(0, 256, (72, 104, 3), np.uint8))
    mine = [drawn.picture for drawn in ours.sample(REQUESTS, settings, batch_size=2, picture=start)]

    draws = PictureNoise([42, 7], LATENTS)
    noise, posterior = (torch.from_numpy(draws()) for _ in range(2))
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: posterior)
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img.randn_tensor",
        lambda *_, **__: noise,
    )
    pipeline = reference_pipeline(
        diffusers.StableDiffusionXLImg2ImgPipeline, theirs, scheduler(sampler, timestep_spacing="leading")
    )
    expected = pipeline(
        **text_states(ours, REQUESTS),
        **{name: value for name, value in sizes(settings).items() if name not in ("height", "width")},
        image=[start, start],
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=4.0,
    ).images
    for one, other in zip(mine, expected, strict=True):
        assert mean_difference(one, other) <= LEVEL
