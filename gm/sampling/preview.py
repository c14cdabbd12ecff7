"""Pictures of a network that is being trained, always of the same prompts, pictures and seeds."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from gm.config import Config
from gm.data import datasets, transforms
from gm.data.sample import Sample
from gm.data.tokens import Tokenizers
from gm.data.transforms import BadPictureError
from gm.errors import SuiteError
from gm.files import replacing
from gm.models.unet import UNet
from gm.sampling.networks import load_networks
from gm.sampling.output import CONTACT_SHEET, contact_sheet
from gm.sampling.pipeline import Drawn, Pipeline
from gm.sampling.prompts import Wish, make_wishes, read_prompts
from gm.sampling.run import batches_of, draw, schedule, settings
from gm.sampling.settings import Request, Settings

DATASETS = "datasets"  # folder of what is drawn from training pictures


class Preview:
    """Draws with a UNet as it is at that moment: what section ``sample`` describes, and training pictures anew.

    The UNet's parameters are those of the training and only read; all other networks are of ``model.weight``. The
    prompts are encoded now and the text encoders freed. Nothing is compiled twice: the later calls find the graphs of
    the first.

    Raises:
        SuiteError: settings that cannot work, weights without an autoencoder or text encoders.
    """

    def __init__(self, config: Config, unet: UNet):
        self._config = config
        self.wishes = _wishes(config) if config.validation.infer_during_train else []
        self._anew = _anew(config) if config.validation.using_datasets else []
        networks = load_networks(config.model.weight, unet)
        abar, kind = schedule(config.diffusion), config.diffusion.prediction_type
        weighted = config.sample.weighted_prompts
        self._pipeline = Pipeline(networks, Tokenizers.of(config.model), abar, kind, weighted=weighted)
        every = self.wishes + [wish for wish, _ in self._anew]
        groups, size = batches_of(every, config.sample.batch_size)
        for chosen, _ in groups:
            self._pipeline.check(chosen)
        self._pipeline.encode_texts([wish.request for wish in every], size)
        networks.forget_text_encoders()

    def __call__(self, folder: Path) -> list[Drawn]:
        """Draw into ``folder``: pictures of the prompts with a contact sheet and a manifest; below it, in ``datasets``,
        training pictures beside what was made of them. Returns the former, in the order of ``wishes``."""
        drawn = []
        if self.wishes:
            drawn = draw(self._pipeline, self.wishes, self._config, folder, progress=False)
        if self._anew:
            self._draw_anew(folder / DATASETS)
        return drawn

    def _draw_anew(self, folder: Path) -> None:
        pictures, labels = [], []
        for index, (wish, picture) in enumerate(self._anew):
            (drawn,) = self._pipeline.sample([wish.request], wish.settings, picture=picture)
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
