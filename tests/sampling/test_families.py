"""From a diffusers folder and a prompt to the picture diffusers draws: models with one text encoder, and LCM's."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.config.sections.data import ModelConfig
from gm.data.tokens import Tokenizers
from gm.diffusion.schedule import alphas_cumprod, betas
from gm.models.architecture import TINY_SDXL
from gm.sampling.noise import PictureNoise
from gm.sampling.pipeline import Pipeline
from gm.sampling.settings import Request, Settings
from gm.weights.folder import ckpt_to_diffusers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.sampling.reference import assert_same_pictures, scheduler  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.slow]

TOKENIZER = Path(__file__).parents[2] / "demo/tiny/tokenizer"
REQUESTS = [Request("a red circle on grey", 42, "blue"), Request("two green squares", 7)]


@pytest.fixture
def folder_of(tmp_path, families, write_random_model):
    """A diffusers folder of a family, with random weights and a tokenizer."""

    def make(family: str, guidance_dim: int | None = None) -> Path:
        architecture = (families | {"sdxl": TINY_SDXL})[family]
        architecture = replace(architecture, unet=replace(architecture.unet, guidance_dim=guidance_dim))
        model = write_random_model(tmp_path / "model.ckpt", architecture)
        ckpt_to_diffusers(model, tmp_path / "model", tokenizer=TOKENIZER)
        return tmp_path / "model"

    return make


def our_pipeline(folder: Path, prediction_type: str = "epsilon") -> Pipeline:
    ms.set_context(mode=ms.GRAPH_MODE)
    tokenizers = Tokenizers.of(ModelConfig(weight=str(folder)))
    return Pipeline.from_weights(folder, tokenizers, alphas_cumprod(betas()), prediction_type)


def their_pipeline(kind, folder: Path, sampler: str, **options):
    pipeline = kind.from_pretrained(folder)
    pipeline.scheduler = scheduler(sampler, timestep_spacing="leading", **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("family", "sampler", "prediction_type"), [("sd-1", "euler", "epsilon"), ("sd-2", "ddim", "v_prediction")]
)
def test_stable_diffusion_1_and_2_draw_what_diffusers_draws(folder_of, family, sampler, prediction_type):
    folder = folder_of(family)
    settings = Settings(sampler, 8, guidance_scale=6.0, height=64, width=64)
    ours = our_pipeline(folder, prediction_type).sample(REQUESTS, settings, batch_size=2)
    pipeline = their_pipeline(diffusers.StableDiffusionPipeline, folder, sampler, prediction_type=prediction_type)
    expected = pipeline(
        [request.prompt for request in REQUESTS],
        negative_prompt=[request.negative_prompt for request in REQUESTS],
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=6.0,
        latents=torch.from_numpy(PictureNoise([42, 7], (4, 8, 8))()),
    ).images
    assert_same_pictures([drawn.picture for drawn in ours], expected)


def test_the_refiner_makes_of_a_picture_what_diffusers_makes_of_it(folder_of, monkeypatch):
    folder = folder_of("refiner")
    start = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    settings = Settings("euler", 10, guidance_scale=4.0, height=64, width=64, strength=0.6, orig_height=90)
    ours = our_pipeline(folder).sample(REQUESTS[1:], settings, picture=start)
    draws = PictureNoise([7], (4, 8, 8))
    noise, posterior = (torch.from_numpy(draws()) for _ in range(2))
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: posterior)
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img.randn_tensor",
        lambda *_, **__: noise,
    )
    pipeline = their_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, folder, "euler")
    expected = pipeline(
        REQUESTS[1].prompt,
        image=start,
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=4.0,
        original_size=(90, 64),
        aesthetic_score=6.0,
        negative_aesthetic_score=2.5,
    ).images
    assert_same_pictures([drawn.picture for drawn in ours], expected)


@pytest.mark.parametrize(
    ("family", "kind"), [("sd-1", "LatentConsistencyModelPipeline"), ("sdxl", "StableDiffusionXLPipeline")]
)
def test_a_consistency_model_that_is_told_the_guidance_scale_draws_what_diffusers_draws(
    folder_of, family, kind, monkeypatch
):
    folder = folder_of(family, guidance_dim=24)
    settings = Settings("lcm", 4, guidance_scale=8.0, height=64, width=64)
    ours = our_pipeline(folder)
    assert ours.networks.architecture.unet.guidance_dim == 24
    drawn = [one.picture for one in ours.sample(REQUESTS, settings, batch_size=2)]
    draws = PictureNoise([42, 7], (4, 8, 8))
    initial = torch.from_numpy(draws())
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: torch.from_numpy(draws()))
    pipeline = their_pipeline(getattr(diffusers, kind), folder, "lcm")
    assert pipeline.unet.config.time_cond_proj_dim == 24
    expected = pipeline(
        [request.prompt for request in REQUESTS],
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=8.0,
        latents=initial,
    ).images
    assert_same_pictures(drawn, expected)
    (weaker,) = ours.sample(REQUESTS[:1], replace(settings, guidance_scale=4.0), batch_size=2)
    assert np.abs(np.asarray(weaker.picture, np.float64) - np.asarray(drawn[0], np.float64)).mean() > 1
