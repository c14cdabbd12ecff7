"""CLIP score: how well pictures show what their prompts say, by the cosine in CLIP's shared space.

Hessel et al. 2021 (arXiv 2104.08718), here on the scale of torchmetrics: 100 max(cosine, 0). Scores compare only with
those of the same CLIP; released models give matching photographs cosines about 0.2 to 0.35.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor
from PIL import Image

from gm.data.tokens import Tokenizers
from gm.errors import SuiteError
from gm.models.architecture import CLIPArchitecture
from gm.models.build import build_clip
from gm.models.clip import CLIP, CLIPPictures, CLIPTexts
from gm.weights.clip import open_clip_model
from gm.weights.folder import TOKENIZER_FILES
from gm.weights.load import load_into

# Of the pictures CLIP was trained on, per channel of values 0 to 1.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
STATISTICS = {"mean": np.mean, "min": np.min, "max": np.max, "std": np.std}


def prepare(picture: Image.Image, side: int) -> np.ndarray:
    """A picture as CLIP was trained: short side to ``side`` (bicubic), middle square, normalised -> (3, side, side)."""
    picture = picture.convert("RGB")
    short = min(picture.size)
    # int() and // as transformers' CLIPImageProcessor has them
    width, height = (side if length == short else int(side * length / short) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return ((np.asarray(picture, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


@dataclass(frozen=True)
class ClipScores:
    """The cosine of each picture with its prompt, (N,)."""

    cosines: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """100 max(cosine, 0) of each, (N,)."""
        return 100 * np.maximum(self.cosines, 0)

    def summary(self) -> dict:
        """``images``, and mean, min, max and (population) standard deviation of ``cosine`` and ``score``."""
        kinds = {"cosine": self.cosines, "score": self.scores}
        return {"images": len(self.cosines)} | {
            kind: {name: float(statistic(values)) for name, statistic in STATISTICS.items()}
            for kind, values in kinds.items()
        }

    def metrics(self) -> dict[str, float]:
        """The summary as flat values for a log: ``clip_score_mean``, ``clip_cosine_min``, ..."""
        summary = self.summary()
        return {f"clip_{kind}_{name}": summary[kind][name] for kind in ("score", "cosine") for name in STATISTICS}


class ClipScorer:
    """A CLIP ready to score; each tower compiles once, as the last batch is filled up.

    Args:
        tokenizer: tells the ids of texts; its vocabulary must be the CLIP's own.
        batch_size: pictures or texts at once.
    """

    def __init__(self, architecture: CLIPArchitecture, clip: CLIP, tokenizer: Tokenizers, batch_size: int = 8):
        self.architecture, self._tokenizer, self._batch = architecture, tokenizer, batch_size
        self._texts, self._pictures = CLIPTexts(clip).set_train(False), CLIPPictures(clip).set_train(False)

    @classmethod
    def load(cls, path: str | Path, tokenizer: str | None = None, batch_size: int = 8) -> "ClipScorer":
        """From a folder of the hub, or the ``.safetensors`` in one.

        The tokenizer is the folder's own, else the one named (a folder or a hub name).

        Raises:
            SuiteError: no such CLIP, or no tokenizer.
        """
        architecture, weights = open_clip_model(path)
        with weights:
            clip = build_clip(architecture)
            load_into(clip, weights)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        if all((folder / name).is_file() for name in TOKENIZER_FILES) or (folder / "tokenizer.json").is_file():
            tokenizer = str(folder)
        return cls(architecture, clip, Tokenizers.load(tokenizer, encoders=(architecture.text,)), batch_size)

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> ClipScores:
        """Each picture against its own prompt.

        Raises:
            SuiteError: nothing to score, or a tokenizer that is not this CLIP's.
        """
        if not pictures or len(pictures) != len(prompts):
            raise SuiteError(f"{len(pictures)} pictures and {len(prompts)} prompts to score: give as many of both")
        texts = list(dict.fromkeys(prompts))
        rows = dict(zip(texts, self._embedded(self._texts, self._ids, texts)))
        shown = self._embedded(self._pictures, self._prepared, pictures)
        return ClipScores((shown * np.stack([rows[prompt] for prompt in prompts])).sum(1))

    def _embedded(self, network, prepared, items: Sequence) -> np.ndarray:
        """Unit vectors (N, P) float64 of the items, in batches of one size."""
        found = []
        for first in range(0, len(items), self._batch):
            part = list(items[first : first + self._batch])
            filled = part + part[-1:] * (self._batch - len(part))
            found.append(network(Tensor(prepared(filled))).asnumpy()[: len(part)])
        return np.concatenate(found).astype(np.float64)

    def _prepared(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([prepare(picture, self.architecture.vision.picture_size) for picture in pictures])

    def _ids(self, texts: Sequence[str]) -> np.ndarray:
        (ids,) = self._tokenizer.encode(texts)
        if ids.max() >= self.architecture.text.vocab_size:
            raise SuiteError(
                f"the tokenizer gives ids up to {ids.max()} and this CLIP knows {self.architecture.text.vocab_size}: "
                "put its own vocab.json and merges.txt beside its weights"
            )
        return ids
