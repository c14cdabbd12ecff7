"""Pictures of a network that is being trained, always of the same prompts and seeds."""

from pathlib import Path

from gm.config import Config
from gm.data.tokens import Tokenizers
from gm.models.unet import UNet
from gm.sampling.networks import load_networks
from gm.sampling.pipeline import Pipeline
from gm.sampling.prompts import make_wishes, read_prompts
from gm.sampling.run import batches_of, draw, schedule, settings


class Preview:
    """Draws what section ``sample`` of a configuration describes with a UNet as it is at that moment.

    The UNet's parameters are those of the training and only read; all other networks are of ``model.weight``. The
    prompts are encoded now and the text encoders freed. Nothing is compiled twice: the later calls find the graphs of
    the first.

    Raises:
        SuiteError: settings that cannot work, weights without an autoencoder or text encoders.
    """

    def __init__(self, config: Config, unet: UNet):
        sample = config.sample
        self._config = config
        prompts = read_prompts(sample.prompt)
        self._wishes = make_wishes(prompts, settings(config), sample.seed, sample.num_images, sample.negative_prompt)
        tokenizers = Tokenizers.of(config.model)
        networks = load_networks(config.model.weight, unet)
        self._pipeline = Pipeline(networks, tokenizers, schedule(config.diffusion), config.diffusion.prediction_type)
        groups, size = batches_of(self._wishes, sample.batch_size)
        for chosen, _ in groups:
            self._pipeline.check(chosen)
        self._pipeline.encode_texts([wish.request for wish in self._wishes], size)
        networks.forget_text_encoders()

    def __call__(self, folder: Path) -> None:
        """Draw into ``folder``: the pictures, a contact sheet and a manifest."""
        draw(self._pipeline, self._wishes, self._config, folder, progress=False)
