"""DreamBooth's pictures of the class, drawn by the model that is to be trained, before it is."""

import logging
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from gm.config import Config
from gm.data.datasets import lacking_class_pictures
from gm.data.tokens import Tokenizers
from gm.errors import UsageError
from gm.parallel.peers import Alone, Peers
from gm.sampling.output import save_picture
from gm.sampling.pipeline import Request
from gm.sampling.prompts import Wish
from gm.sampling.run import about, build, settings

log = logging.getLogger(__name__)


def draw_lacking(config: Config, peers: Peers | Alone) -> None:
    """Draw what ``data.class_data_path`` lacks of ``data.num_class_images``, as section ``sample`` says.

    Each picture is saved when it is drawn, under a number that is also its seed: interrupted, the same command goes on,
    and the pictures are those of an uninterrupted one. Rank 0 draws, the others wait. A dry run draws none.

    Raises:
        SuiteError: no weights, or without an autoencoder or text encoders; settings that cannot work.
    """
    if peers.rank == 0:
        if not config.dry_run and (count := lacking_class_pictures(config.data)):
            _draw(config, count, peers)
        peers.gather("class picture", False)
    else:
        while peers.gather("class picture")[0]:  # each is a sign that rank 0 gets on
            pass


def _draw(config: Config, count: int, peers: Peers | Alone) -> None:
    data, sample = config.data, config.sample
    if not config.model.weight:
        raise UsageError(
            f"{data.class_data_path} lacks {count} of {data.num_class_images} pictures of the class, and without "
            "--weight nothing can draw them: name a whole model, or lower --num_class_images"
        )
    folder = Path(data.class_data_path)
    chosen = replace(settings(config), height=data.resolution, width=data.resolution)
    numbers = (number for number in range(data.num_class_images) if not _place(folder, number).exists())
    wanted = [number for number, _ in zip(numbers, range(count))]
    prompt, negative = data.class_prompt, sample.negative_prompt
    wishes = [Wish(Request(prompt, config.train.seed + number, negative), chosen) for number in wanted]
    pipeline = build(config, Tokenizers.of(config.model))
    drawn = pipeline.sample([wish.request for wish in wishes], chosen, sample.batch_size)
    bar = tqdm(zip(wanted, wishes, drawn), "class pictures", count, unit="picture", dynamic_ncols=True)
    for number, wish, picture in bar:
        save_picture(_place(folder, number), picture.picture, wish, about(config))
        peers.gather("class picture", True)
    log.info("%d pictures of the class drawn into %s", count, folder)


def _place(folder: Path, number: int) -> Path:
    return folder / f"class_{number:05d}.png"
