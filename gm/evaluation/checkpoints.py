"""The checkpoints an evaluation is asked for, and the one UNet in which they take turns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.config import Config
from gm.data.encoders import weights_hash
from gm.errors import SuiteError
from gm.models.architecture import COND_STAGE, EMBEDDERS, ModelArchitecture
from gm.training.assemble import load_unet
from gm.weights.files import WeightFile, open_weights
from gm.weights.load import load_into

OF_A_RUN = re.compile(r"unet_(ema_)?(\d+)\.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A weight file with a UNet, and what it is called in tables: different from all others."""

    label: str
    path: Path


def find(names: Sequence[str | Path]) -> list[Checkpoint]:
    """The checkpoints of files, diffusers folders and folders of runs; of a run all ``unet_N.ckpt``, by step.

    Raises:
        SuiteError: one is not there, or a run has none.
    """
    paths: list[Path] = []
    for name in map(Path, names):
        if not name.exists():
            raise SuiteError(f"no such checkpoint: {name}")
        paths += _of_run(name) if (name / "weights").is_dir() else [name]
    paths = list(dict.fromkeys(paths))
    stems = [path.stem if path.is_file() else path.name for path in paths]
    runs = [path.parent.parent if path.parent.name == "weights" else path.parent for path in paths]
    return [
        Checkpoint(stem if stems.count(stem) == 1 else f"{run.name}/{stem}", path)
        for stem, run, path in zip(stems, runs, paths)
    ]


def check(checkpoints: Sequence[Checkpoint], base: str | Path) -> None:
    """Open each, which takes no time, so that what does not go with ``base`` is told before anything is built.

    Raises:
        SuiteError: no weights that can be read, no UNet among them, or one of another kind.
    """
    with open_weights(base) as weights:
        wanted, kind = _with_unet(weights).unet, weights.describe()
    for checkpoint in checkpoints:
        with open_weights(checkpoint.path) as weights:
            if _with_unet(weights).unet != wanted:
                raise SuiteError(
                    f"{checkpoint.path} has another UNet than {base}: it is {weights.describe()}, and that is {kind}; "
                    "name checkpoints of one model"
                )


def _with_unet(weights: WeightFile) -> ModelArchitecture:
    architecture = weights.architecture()
    if architecture.unet is None:
        raise SuiteError(f"{weights.path} has no UNet to evaluate: it is {weights.describe()}")
    return architecture


def _of_run(run: Path) -> list[Path]:
    matched = [(OF_A_RUN.fullmatch(path.name), path) for path in (run / "weights").iterdir()]
    found = sorted((match[1] or "", int(match[2]), path) for match, path in matched if match)
    if not found:
        raise SuiteError(f"{run} has no weights/unet_N.ckpt yet: name a run that has saved something, or files")
    return [path for _, _, path in found]


class Subject:
    """A UNet of ``model.weight``'s kind that holds one checkpoint after another, so that each graph compiles once.

    The text encoders and the autoencoder of an evaluation are those of ``model.weight``.
    """

    def __init__(self, config: Config):
        self._base = Path(config.model.weight)
        self.architecture, self.unet = load_unet(config)

    def hold(self, path: Path) -> None:
        """Fill the UNet from a file that has one: what training saves, or a whole model.

        Raises:
            SuiteError: no UNet, one of another kind, or text encoders that are not those of ``model.weight``.
        """
        with open_weights(path) as weights:
            architecture = _with_unet(weights)
            load_into(self.unet, weights)
        prefixes = (EMBEDDERS, COND_STAGE)
        if architecture.text_encoders and path != self._base:
            ours, theirs = (weights_hash(one, "text encoders", prefixes) for one in (self._base, path))
            if ours != theirs:
                raise SuiteError(
                    f"{path} has other text encoders than {self._base}: evaluate the whole model by itself, as --weight"
                )
