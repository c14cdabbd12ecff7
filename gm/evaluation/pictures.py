"""A folder of pictures, what each is meant to show, and how a CLIP scores them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from gm.config.sections.data import DataConfig
from gm.data import datasets, transforms
from gm.data.sample import PictureFile, Sample
from gm.data.transforms import BadPictureError
from gm.errors import SuiteError, UsageError
from gm.evaluation.clip_score import ClipScorer, ClipScores
from gm.files import write_json
from gm.sampling.output import CONTACT_SHEET
from gm.sampling.prompts import parse_line, read_prompts

CLIP_SCORES = "clip_score.json"


class Prompted(NamedTuple):
    """A picture below a folder, and what it is meant to show."""

    name: str
    prompt: str
    file: PictureFile


def score_folder(scorer: ClipScorer, folder: Path, prompt: str = "") -> tuple[ClipScores, list[Prompted]]:
    """Score all pictures of a folder against the prompts that ``prompted`` finds; returns these too."""
    found = prompted(folder, prompt)
    return scorer.score([_read(one) for one in found], [one.prompt for one in found]), found


def _read(picture: Prompted) -> Image.Image:
    try:
        with picture.file.open() as stream:
            return transforms.load(stream)
    except BadPictureError as error:
        raise SuiteError(f"picture {picture.name} cannot be used: {error}; mend or remove it") from None


def prompted(folder: Path, prompt: str = "") -> list[Prompted]:
    """The pictures of a folder, sorted by name, each with its prompt.

    ``prompt``: one for all of them, or a file with one a line, in the order of the pictures; with fewer lines each is
    for as many pictures in a row. Without it a picture's prompt is what the sampler wrote into its PNG, else its
    caption, as training reads them. A contact sheet is no picture of a prompt.

    Raises:
        SuiteError: no pictures, or one without a prompt.
        UsageError: prompts that cannot be divided among the pictures.
    """
    samples, problems = datasets.inspect(DataConfig(path=str(folder), missing_caption="empty", minimum_image_size=1))
    if problems:
        raise SuiteError(f"picture {problems[0].id} in {folder} cannot be used: {problems[0].reason}")
    samples = [sample for sample in samples if sample.id.rpartition("/")[2] != CONTACT_SHEET]
    if not samples:
        raise SuiteError(f"no pictures in {folder} but a contact sheet: name the folder they are in")
    if prompt:
        lines = [parse_line(line)[0] for line in read_prompts(prompt)]
        each, rest = divmod(len(samples), len(lines))
        if rest:
            raise UsageError(f"{len(lines)} prompts cannot be divided among the {len(samples)} pictures of {folder}")
        texts = [line for line in lines for _ in range(each)]
    else:
        texts = [_written(sample) or sample.captions[0] for sample in samples]
        lacking = [sample.id for sample, text in zip(samples, texts) if not text]
        if lacking:
            raise SuiteError(
                f"{len(lacking)} of {len(samples)} pictures in {folder} have neither a prompt inside nor a caption "
                f"({lacking[0]}): give --prompt, a text file with one prompt a line"
            )
    return [Prompted(sample.id, text, sample.picture) for sample, text in zip(samples, texts)]


def _written(sample: Sample) -> str:
    """The prompt in a PNG's text, "" without one."""
    if not sample.id.lower().endswith(".png"):
        return ""
    with sample.picture.open() as stream, Image.open(stream) as picture:
        return str(picture.info.get("prompt", ""))


def write_scores(path: Path, scores: ClipScores, names: Sequence[str], prompts: Sequence[str], clip: str) -> None:
    """JSON: the ``summary``, ``file``, ``prompt``, ``cosine`` and ``score`` of each picture, and which ``clip``."""
    each = zip(names, prompts, scores.cosines, scores.scores)
    images = [
        {"file": name, "prompt": prompt, "cosine": float(cosine), "score": float(score)}
        for name, prompt, cosine, score in each
    ]
    write_json(path, {"clip": clip, "summary": scores.summary(), "images": images})


def table(scores: ClipScores, names: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """The same as lines of text."""
    lines = [f"{'score':>7} {'cosine':>8}  picture"]
    for name, prompt, cosine, score in zip(names, prompts, scores.cosines, scores.scores):
        lines.append(f"{score:7.2f} {cosine:8.4f}  {name}: {prompt}")
    summary = scores.summary()
    for kind, digits in (("score", 2), ("cosine", 4)):
        told = ", ".join(f"{name} {value:.{digits}f}" for name, value in summary[kind].items())
        lines.append(f"{kind} of {summary['images']} pictures: {told}")
    return lines
