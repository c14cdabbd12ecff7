"""The pictures of diffusers' two pipelines, base with ``denoising_end`` and refiner with ``denoising_start``."""

from pathlib import Path

import mindspore as ms
import pytest

from gm.config.sections.data import ModelConfig
from gm.data.tokens import Tokenizers
from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr
from gm.models.architecture import TINY_SDXL
from gm.sampling.expert import Expert
from gm.sampling.networks import load_networks, load_second_stage
from gm.sampling.noise import PictureNoise
from gm.sampling.pipeline import Pipeline
from gm.sampling.settings import Request, Settings
from gm.weights.folder import ckpt_to_diffusers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.sampling.reference import assert_same_pictures, scheduler  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.slow]

TOKENIZER = Path(__file__).parents[2] / "demo/tiny/tokenizer"
REQUESTS = [Request("a red circle on grey", 42), Request("two green squares", 7)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, families, write_random_model):
    """Base and refiner as diffusers folders."""
    place, found = tmp_path_factory.mktemp("two"), []
    for seed, (name, model) in enumerate({"base": TINY_SDXL, "refiner": families["refiner"]}.items()):
        write_random_model(place / f"{name}.ckpt", model, seed)
        ckpt_to_diffusers(place / f"{name}.ckpt", place / name, tokenizer=TOKENIZER)
        found.append(place / name)
    return found


@pytest.fixture(scope="module")
def networks(folders):
    ms.set_context(mode=ms.GRAPH_MODE)
    first = load_networks(folders[0])
    return first, load_second_stage(folders[1], first.architecture)


@pytest.fixture(scope="module")
def theirs(folders):
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(folders[0])
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folders[1], vae=base.vae)
    for pipeline in (base, refiner):
        pipeline.set_progress_bar_config(disable=True)
    return base, refiner


def go_on(used) -> None:
    """Have a scheduler go on in the next pipeline where it stands, in the middle of its memory or of a step."""
    used.set_timesteps = lambda *_, **__: None
    used.set_begin_index = lambda *_: None
    used.order = 1  # otherwise the second pipeline begins one evaluation before the first one ended


def our_pipeline(networks, folders, kinds=("epsilon", "epsilon"), zero_terminal=False) -> Pipeline:
    abar = alphas_cumprod(rescale_zero_terminal_snr(betas()) if zero_terminal else betas())
    tokenizers = [Tokenizers.of(ModelConfig(weight=str(folder))) for folder in folders]
    second = Expert(networks[1], tokenizers[1], abar, kinds[1])
    return Pipeline(networks[0], tokenizers[0], abar, kinds[0], second)


def common(settings: Settings) -> dict:
    return {
        "prompt": [request.prompt for request in REQUESTS],
        "num_inference_steps": settings.sample_step,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
    }


@pytest.mark.parametrize(
    ("sampler", "spacing", "kinds", "zero_terminal", "remembers"),
    [
        ("euler", "leading", ("epsilon", "epsilon"), False, False),
        ("ddim", "leading", ("epsilon", "epsilon"), False, False),
        ("euler", "trailing", ("v_prediction", "v_prediction"), True, False),
        ("euler", "trailing", ("v_prediction", "epsilon"), False, False),
        ("heun", "linspace", ("epsilon", "epsilon"), False, True),
        ("dpmpp_2m", "trailing", ("epsilon", "epsilon"), False, True),
        ("unipc", "trailing", ("epsilon", "epsilon"), False, True),
        ("lms", "leading", ("epsilon", "epsilon"), False, True),
    ],
)
def test_base_and_refiner_draw_what_they_draw_in_diffusers(
    networks, folders, theirs, sampler, spacing, kinds, zero_terminal, remembers
):
    settings = Settings(
        sampler, 20, spacing, guidance_scale=5.0, guidance_rescale=0.7 * zero_terminal, height=64, width=64,
        denoising_end=0.65, aesthetic_score=7.0, negative_aesthetic_score=2.0,
    )  # fmt: skip
    ours = our_pipeline(networks, folders, kinds, zero_terminal).sample(REQUESTS, settings, batch_size=2)

    options = {"timestep_spacing": spacing} | ({"rescale_betas_zero_snr": True} if zero_terminal else {})
    base, refiner = theirs
    base.scheduler = scheduler(sampler, prediction_type=kinds[0], **options)
    latents = base(
        **common(settings),
        height=64,
        width=64,
        latents=torch.from_numpy(PictureNoise([42, 7], (4, 8, 8))()),
        denoising_end=0.65,
        output_type="latent",
    ).images
    if remembers:
        go_on(base.scheduler)
        refiner.scheduler = base.scheduler
    else:
        refiner.scheduler = scheduler(sampler, prediction_type=kinds[1], **options)
    expected = refiner(
        **common(settings),
        image=latents,
        denoising_start=0.65,
        original_size=(64, 64),
        target_size=(64, 64),
        aesthetic_score=7.0,
        negative_aesthetic_score=2.0,
    ).images
    assert_same_pictures([drawn.picture for drawn in ours], expected)
