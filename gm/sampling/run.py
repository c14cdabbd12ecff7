"""One sampling run: a configuration in, a folder of pictures out."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from gm.config import Config
from gm.config.sections.sample import SampleConfig
from gm.config.sections.training import DiffusionConfig
from gm.data.tokens import Tokenizers
from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr
from gm.errors import SuiteError, UsageError
from gm.files import make_folder, replacing
from gm.launch import start
from gm.sampling.emphasis import plain
from gm.sampling.expert import Expert
from gm.sampling.output import CONTACT_SHEET, picture_name, save_manifest, save_picture, sheet_of
from gm.sampling.pipeline import Drawn, Pipeline
from gm.sampling.prompts import Wish, make_wishes, read_prompts
from gm.sampling.settings import Settings, plan_steps
from gm.weights.parameterisation import check_parameterisation

log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Draw what ``config.sample`` asks for; return the folder the pictures are in.

    Everything that can be wrong without the networks is told before they are loaded.

    Raises:
        SuiteError: one line naming the thing and the remedy.
    """
    sample = config.sample
    wishes = checked_wishes(config, read_prompts(sample.prompt))
    noise = _read_noise(sample.init_latent_path) if sample.init_latent_path else None
    picture = _read_picture(sample.img) if sample.img else None
    check_weights(config)
    tokenizers = Tokenizers.of(config.model)
    _warn_of_long_prompts(tokenizers, wishes, sample.weighted_prompts, config.model.max_token_length)

    _check_outputs(sample, wishes)
    start_device(config)
    pipeline = build(config, tokenizers)
    for chosen in dict.fromkeys(wish.settings for wish in wishes):
        pipeline.check(chosen)
        if chosen.tile:
            log.info("autoencoder: %dx%d in tiles of %d pixels", chosen.width, chosen.height, chosen.tile)

    folder = Path(sample.save_path)
    drawn = draw(pipeline, wishes, config, folder, noise, picture)
    if sample.save_latent:
        _write_latents(Path(sample.save_latent), drawn)
    log.info("%d pictures in %s (%s shows them all)", len(drawn), folder, CONTACT_SHEET)
    return folder


def checked_wishes(config: Config, prompts: list[str]) -> list[Wish]:
    """What to draw of each prompt; raises UsageError for steps that no sampler can take."""
    sample = config.sample
    wishes = make_wishes(prompts, settings(config), sample.seed, sample.num_images, sample.negative_prompt)
    for chosen in dict.fromkeys(wish.settings for wish in wishes):
        plan_steps(chosen, schedule(config.diffusion), bool(sample.stage2_weight))
    return wishes


def start_device(config: Config) -> None:
    """Import MindSpore and prepare it; once, before anything is built."""
    device = start(config.launch)
    from gm.models import attention  # imports MindSpore, which start() prepares

    attention.choose(config.model.attention, device.target, config.launch.precision)


def build(config: Config, tokenizers: Tokenizers) -> Pipeline:
    """The pipeline of a configuration, its weights loaded.

    Raises:
        SuiteError: weights that are missing, damaged or do not fit together.
    """
    begun = time.perf_counter()
    launch, diffusion, weight = config.launch, config.diffusion, config.model.weight
    abar, kind = schedule(diffusion), diffusion.prediction_type
    weighted = config.sample.weighted_prompts
    pipeline = Pipeline.from_weights(weight, tokenizers, abar, kind, launch.precision, launch.param_fp16, weighted)
    if config.sample.stage2_weight:
        pipeline.second = second_stage(config, pipeline)
        weight += f" and {config.sample.stage2_weight}"
    log.info("%s loaded in %.1f s", weight, time.perf_counter() - begun)
    return pipeline


def second_stage(config: Config, pipeline: Pipeline) -> Expert:
    """The expert that goes on where a pipeline's own stops; text states are shared where it has no encoders."""
    from gm.sampling.networks import load_second_stage

    path, launch = config.sample.stage2_weight, config.launch
    networks = load_second_stage(path, pipeline.networks.architecture, launch.precision, launch.param_fp16)
    diffusion = second_diffusion(config)
    shared = None if networks.has_text_encoders else pipeline.first.texts
    tokenizers = None if shared else Tokenizers.of(replace(config.model, weight=path))
    weighted = config.sample.weighted_prompts
    return Expert(networks, tokenizers, schedule(diffusion), diffusion.prediction_type, shared, weighted)


def draw(
    pipeline: Pipeline,
    wishes: list[Wish],
    config: Config,
    folder: Path,
    noise: np.ndarray | None = None,
    picture: Image.Image | None = None,
    progress: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """Draw the wishes into a folder, with a contact sheet and a manifest.

    ``progress`` shows a bar in the terminal; ``on_step(done, total)`` is called after every step.
    """
    sample = config.sample
    common = about(config)
    names = [picture_name(index, wish) for index, wish in enumerate(wishes)]
    drawn = []
    for index, result in enumerate(_draw_all(pipeline, wishes, sample.batch_size, noise, picture, progress, on_step)):
        save_picture(folder / names[index], result.picture, wishes[index], common)
        drawn.append(result)
    sheet = sheet_of([result.picture for result in drawn], wishes)
    with replacing(folder / CONTACT_SHEET) as file:
        sheet.save(file, format="PNG")
    save_manifest(folder, names, wishes, common)
    return drawn


def schedule(diffusion: DiffusionConfig) -> np.ndarray:
    """The noise schedule of a configuration, abar (T,)."""
    beta = betas(diffusion.beta_schedule, diffusion.num_train_timesteps, diffusion.beta_start, diffusion.beta_end)
    return alphas_cumprod(rescale_zero_terminal_snr(beta) if diffusion.rescale_betas_zero_snr else beta)


def second_diffusion(config: Config) -> DiffusionConfig:
    """What the second stage was trained for: as the first, but for what is said otherwise."""
    first, sample = config.diffusion, config.sample
    kind, zero_snr = sample.stage2_prediction_type, sample.stage2_rescale_betas_zero_snr
    return replace(
        first,
        prediction_type=kind or first.prediction_type,
        rescale_betas_zero_snr=first.rescale_betas_zero_snr if zero_snr is None else zero_snr,
    )


def about(config: Config) -> dict[str, Any]:
    """What all pictures of a run share: weights, what they predict, files they start from."""
    sample, diffusion = config.sample, config.diffusion
    shared: dict[str, Any] = {"weight": config.model.weight}
    for name in ("prediction_type", "rescale_betas_zero_snr", "beta_schedule", "beta_start", "beta_end"):
        shared[name] = getattr(diffusion, name)
    if sample.stage2_weight:
        second = second_diffusion(config)
        shared["stage2_weight"] = sample.stage2_weight
        shared["stage2_prediction_type"] = second.prediction_type
        shared["stage2_rescale_betas_zero_snr"] = second.rescale_betas_zero_snr
    given = {"img": sample.img, "init_latent_path": sample.init_latent_path}
    shared |= {"weighted_prompts": sample.weighted_prompts, "max_token_length": config.model.max_token_length}
    return {**shared, "precision": config.launch.precision, **{name: path for name, path in given.items() if path}}


def settings(config: Config) -> Settings:
    """The settings all pictures of a run begin with."""
    sample = config.sample
    shared = {name: getattr(sample, name) for name in Settings.__dataclass_fields__}
    if config.task != "img2img":
        shared["strength"] = 1.0
    return Settings(**shared)


def _draw_all(
    pipeline: Pipeline,
    wishes: list[Wish],
    batch_size: int,
    noise: np.ndarray | None,
    picture: Image.Image | None,
    shown: bool,
    on_step: Callable[[int, int], None] | None,
) -> Iterator[Drawn]:
    """Draw the wishes in order, those with the same settings in the same batches."""
    groups, largest = batches_of(wishes, batch_size)
    batches = [-(-len(group) // largest) for _, group in groups]
    total = sum(number * len(pipeline.check(chosen)[0]) for (chosen, _), number in zip(groups, batches))
    with _progress(total, shown, on_step) as tick:
        done = 0
        for chosen, group in groups:
            part = noise if noise is None or len(noise) == 1 else noise[done : done + len(group)]
            requests = [wish.request for wish in group]
            yield from pipeline.sample(requests, chosen, largest, part, picture, tick)
            done += len(group)


def batches_of(wishes: list[Wish], batch_size: int) -> tuple[list[tuple[Settings, list[Wish]]], int]:
    """The wishes by their settings, and how many are drawn at once: one size for all, so that one graph serves."""
    groups = [(chosen, list(group)) for chosen, group in groupby(wishes, key=lambda wish: wish.settings)]
    return groups, min(batch_size, max(len(group) for _, group in groups))


@contextmanager
def _progress(total: int, shown: bool, on_step: Callable[[int, int], None] | None) -> Iterator[Callable[[], None]]:
    words = "sampling (the first step compiles)"
    steps = count(1)
    with tqdm(total=total, unit="step", desc=words, dynamic_ncols=True, disable=not shown) as bar:

        def tick() -> None:
            bar.update()
            if on_step is not None:
                on_step(next(steps), total)

        yield tick


def check_weights(config: Config) -> None:
    """Raises SuiteError for weights that are not there, or are to be drawn with as what they are not."""
    if not config.model.weight:
        raise UsageError("no weights to draw with: name a whole checkpoint with --weight")
    stages = [(config.model.weight, config.diffusion, "")]
    if config.sample.stage2_weight:
        stages.append((config.sample.stage2_weight, second_diffusion(config), "stage2_"))
    for path, diffusion, prefix in stages:
        if not Path(path).exists():
            raise SuiteError(f"no such weight file: {path}")
        check_parameterisation(Path(path), diffusion.prediction_type, diffusion.rescale_betas_zero_snr, prefix)


def _warn_of_long_prompts(tokenizers: Tokenizers, wishes: list[Wish], weighted: bool, most: int) -> None:
    texts = list(dict.fromkeys(plain(wish.request.prompt) if weighted else wish.request.prompt for wish in wishes))
    for text, cut in zip(texts, tokenizers.cut_off(texts)):
        if cut:
            log.warning("the last %d tokens of %r are not seen: --max_token_length is %d", cut, text, most)


def _read_noise(path: str) -> np.ndarray:
    try:
        noise = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SuiteError(f"no such file of latents: {path}") from None
    except (ValueError, EOFError):
        raise SuiteError(f"{path} is no .npy file of numbers: write it with numpy.save or --save_latent") from None
    if not np.issubdtype(noise.dtype, np.floating) or not np.isfinite(noise).all():
        raise SuiteError(
            f"{path} holds {noise.dtype} with values that are no finite numbers: save unit noise as float32"
        )
    return noise


def _read_picture(path: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise SuiteError(f"no such picture: {path}") from None
    except UnidentifiedImageError:
        raise SuiteError(f"{path} is no picture Pillow can read: give a PNG or JPEG") from None
    except OSError as error:
        if error.errno is not None:  # the system's, which names the file; Pillow's of a damaged one do not
            raise
        raise SuiteError(f"{path} is damaged ({error}): give another picture") from None


def _check_outputs(sample: SampleConfig, wishes: list[Wish]) -> None:
    """What cannot be written is told before the work, not after it."""
    make_folder(sample.save_path)
    if not sample.save_latent:
        return
    target = Path(sample.save_latent)
    make_folder(target.parent)
    if target.is_dir():
        raise UsageError(f"--save_latent {target} is a folder: give the name of a file in it")
    if len({(wish.settings.height, wish.settings.width) for wish in wishes}) > 1:
        raise UsageError("--save_latent needs pictures of one size: leave out the prompts' own --w and --h")


def _write_latents(path: Path, drawn: list[Drawn]) -> None:
    with replacing(path) as file:
        np.save(file, np.stack([result.latents for result in drawn]))
