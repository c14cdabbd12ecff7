"""Pictures of a network that is being trained, always of the same prompts, pictures and seeds."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from gm.config import Config
from gm.data import datasets, transforms
from gm.data.noising import trained_range
from gm.data.sample import Sample
from gm.data.tokens import Tokenizers
from gm.data.transforms import BadPictureError
from gm.errors import SuiteError
from gm.files import replacing
from gm.models.unet import UNet
from gm.sampling.emphasis import plain
from gm.sampling.expert import Expert
from gm.sampling.networks import load_networks, load_second_stage
from gm.sampling.output import CONTACT_SHEET, contact_sheet, picture_name
from gm.sampling.pipeline import Pipeline
from gm.sampling.prompts import Wish, make_wishes, read_prompts
from gm.sampling.run import batches_of, draw, schedule, settings
from gm.sampling.settings import Request, Settings

DATASETS, BOTH = "datasets", "both"  # folders of what is drawn from training pictures, and of what two experts draw


class Shown(NamedTuple):
    """A picture that was drawn: ``name`` is its file below the folder of all; ``prompt`` is without weights."""

    name: str
    prompt: str
    picture: Image.Image


class Preview:
    """Draws with a UNet as it is at that moment: what section ``sample`` describes, and training pictures anew.

    The UNet's parameters are those of the training and only read; all other networks are of ``model.weight``. The
    prompts are encoded now and the text encoders freed. Nothing is compiled twice: the later calls find the graphs of
    the first. One of two experts also draws the prompts together with the other, ``validation.other_stage_weight``; a
    second stage then does not draw them alone, as it has never seen noise.

    Raises:
        SuiteError: settings that cannot work, weights without an autoencoder or text encoders, an expert that does not
            fit.
    """

    def __init__(self, config: Config, unet: UNet):
        self._config, validation = config, config.validation
        wishes = _wishes(config) if validation.infer_during_train else []
        self._anew = _anew(config) if validation.using_datasets else []
        networks, tokenizers = load_networks(config.model.weight, unet), Tokenizers.of(config.model)
        abar, kind = schedule(config.diffusion), config.diffusion.prediction_type
        self._alone = Pipeline(networks, tokenizers, abar, kind, weighted=config.sample.weighted_prompts)
        self._series = [(self._alone, wishes, "")] if wishes else []  # pipeline, what it draws, where
        if validation.other_stage_weight:
            series = _with_the_other(config, self._alone), [_shared(wish, config) for wish in wishes], BOTH
            second = not config.diffusion.refiner_training_invert_schedule
            self._series = [series] if second else [*self._series, series]
        anew = (self._alone, [wish for wish, _ in self._anew], DATASETS)
        for pipeline, chosen, _ in (*self._series, *([anew] if self._anew else [])):
            groups, size = batches_of(chosen, config.sample.batch_size)
            for same, _ in groups:
                pipeline.check(same)
            pipeline.encode_texts([wish.request for wish in chosen], size)
        networks.forget_text_encoders()

    def __call__(self, folder: Path) -> list[Shown]:
        """Draw into ``folder``: pictures of the prompts with a contact sheet and a manifest (``both/`` has those of two
        experts); in ``datasets/`` training pictures beside what was made of them. Returns the pictures of the prompts,
        those of two experts if there are two."""
        shown = []
        for pipeline, wishes, place in self._series:
            drawn = draw(pipeline, wishes, self._config, folder / place, progress=False)
            names = [(Path(place) / picture_name(index, wish)).as_posix() for index, wish in enumerate(wishes)]
            read = plain if self._config.sample.weighted_prompts else str
            prompts = [read(wish.request.prompt) for wish in wishes]
            shown = [Shown(*one) for one in zip(names, prompts, (one.picture for one in drawn))]
        if self._anew:
            self._draw_anew(folder / DATASETS)
        return shown

    def _draw_anew(self, folder: Path) -> None:
        pictures, labels = [], []
        for index, (wish, picture) in enumerate(self._anew):
            (drawn,) = self._alone.sample([wish.request], wish.settings, picture=picture)
            pictures += [picture, drawn.picture]
            labels += [wish.request.prompt, f"{wish.settings.strength:g} of it drawn anew"]
            with replacing(folder / f"{index:03d}.png") as file:
                drawn.picture.save(file, format="PNG")
        with replacing(folder / CONTACT_SHEET) as file:
            contact_sheet(pictures, labels, columns=2).save(file, format="PNG")


def _wishes(config: Config) -> list[Wish]:
    sample = config.sample
    prompts = read_prompts(sample.prompt)
    return make_wishes(prompts, settings(config), sample.seed, sample.num_images, sample.negative_prompt)


def _shared(wish: Wish, config: Config) -> Wish:
    """The same, handed over where the trained ranges of the two experts meet."""
    begin, end = trained_range(config.diffusion)
    length = config.diffusion.num_train_timesteps
    boundary = begin if end == length else end
    return replace(wish, settings=replace(wish.settings, denoising_end=1 - boundary / length))


def _with_the_other(config: Config, alone: Pipeline) -> Pipeline:
    """Both experts, with the text states and the autoencoder of the one in training."""
    trained, diffusion = alone.first, config.diffusion
    networks = load_second_stage(config.validation.other_stage_weight, alone.networks.architecture)
    if networks.has_text_encoders:
        networks.forget_text_encoders()
    other = Expert(networks, None, alone.alphas_cumprod, diffusion.prediction_type, trained.texts)
    both = Pipeline(alone.networks, None, alone.alphas_cumprod, diffusion.prediction_type)
    first = diffusion.refiner_training_invert_schedule
    both.first, both.second = (trained, other) if first else (other, trained)
    return both


def _anew(config: Config) -> list[tuple[Wish, Image.Image]]:
    """Pictures of each training set, spread evenly over it and framed in the middle, with how to draw them.

    Raises:
        SuiteError: there are none, or one cannot be read.
    """
    strength = config.validation.strength or config.diffusion.refiner_training_strength
    chosen: Settings = replace(settings(config), strength=strength)
    every: dict[int, list[Sample]] = {}
    for sample in datasets.scan(config.data):
        every.setdefault(sample.dataset, []).append(sample)
    found: list[tuple[Wish, Image.Image]] = []
    for samples in every.values():
        count = min(config.validation.num_eval_images, len(samples))
        for sample in (samples[index * len(samples) // count] for index in range(count)):
            request = Request(sample.captions[0], config.sample.seed + len(found), config.sample.negative_prompt)
            found.append((Wish(request, chosen), _framed(sample, chosen)))
    return found


def _framed(sample: Sample, chosen: Settings) -> Image.Image:
    framing = transforms.frame(sample.size, (chosen.height, chosen.width))
    try:
        with sample.picture.open() as stream:
            return Image.fromarray(transforms.framed(transforms.load(stream), framing))
    except BadPictureError as error:
        raise SuiteError(f"picture {sample.id} cannot be used: {error}; mend or remove it") from None
