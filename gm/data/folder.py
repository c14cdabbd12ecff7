"""A folder of captioned pictures as a list of samples."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.data.buckets import Size
from gm.data.captions import caption_lines, listed_captions
from gm.data.prefetch import for_each
from gm.data.transforms import BadPictureError, picture_size
from gm.errors import SuiteError
from gm.files import write_text

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
NAMED_IN_ERRORS = 3
# on_bad_sample=skip is for the odd broken download; more than this share means that something else is wrong.
LARGEST_SKIPPED_SHARE = 0.01
ALWAYS_SKIPPABLE = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One captioned picture; ``id`` is its path below the data folder with "/", ``size`` upright (height, width)."""

    id: str
    picture_path: Path
    captions: tuple[str, ...]
    size: Size


@dataclass(frozen=True)
class Problem:
    """A sample that cannot be used, and why."""

    id: str
    reason: str


def scan(
    path: str | Path, missing_caption: str = "error", on_bad_sample: str = "error", report: str | Path | None = None
) -> list[Sample]:
    """All usable samples below ``path``, sorted by id; only headers of the pictures are read.

    ``missing_caption``: error | empty | filename. ``on_bad_sample``: error | skip. All problems are told in one error,
    the full list in the file ``report`` if given. Raises SuiteError.
    """
    samples, problems = inspect(path, missing_caption)
    if problems and report is not None:
        write_text(report, "".join(f"{problem.id}\t{problem.reason}\n" for problem in problems))
    judge(path, problems, len(samples), on_bad_sample, report)
    return samples


def inspect(path: str | Path, missing_caption: str = "error") -> tuple[list[Sample], list[Problem]]:
    """Samples and problems below ``path``, both sorted by id. Raises SuiteError only if there are none at all."""
    root = Path(path)
    if not str(path):
        raise SuiteError("no pictures to read: name their folder with --data_path")
    if not root.is_dir():
        raise SuiteError(f"no folder {root}: --data_path names the folder of pictures and captions")
    pictures, texts, folders = _walk(root)
    listed = listed_captions(root, folders)
    if not pictures:
        raise SuiteError(f"no pictures in {root}: put {', '.join(sorted(PICTURE_SUFFIXES))} files there")
    known = set(pictures)
    gone = [(id, source) for id, (_, source) in listed.items() if id not in known]
    problems = [Problem(id, f"listed in {source} but not there") for id, source in gone]
    sizes = for_each(_size_or_reason, [root / id for id in pictures], workers=8)
    samples = []
    for id, size in zip(pictures, sizes):
        captions = _captions(root, id, listed, texts, missing_caption)
        if isinstance(size, str):
            problems.append(Problem(id, size))
        elif not captions:
            problems.append(Problem(id, "no caption"))
        else:
            samples.append(Sample(id, root / id, tuple(captions), size))
    return samples, sorted(problems, key=lambda problem: problem.id)


def _walk(root: Path) -> tuple[list[str], set[str], list[str]]:
    """Relative paths of pictures (sorted), of text files, and of folders (top first); hidden ones left out."""
    pictures, texts, folders = [], set(), []
    for current, below, files in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        folder = Path(current).relative_to(root)
        folders.append(folder.as_posix())
        for name in files:
            stem, suffix = os.path.splitext(name)
            if name.startswith("."):
                continue
            if suffix.lower() in PICTURE_SUFFIXES:
                pictures.append((folder / name).as_posix())
            elif suffix.lower() == ".txt":
                texts.add((folder / stem).as_posix())
    return sorted(pictures), texts, folders


def _captions(
    root: Path, id: str, listed: dict[str, tuple[list[str], str]], texts: set[str], missing_caption: str
) -> Sequence[str]:
    stem = os.path.splitext(id)[0]
    captions = listed[id][0] if id in listed else caption_lines(root / f"{stem}.txt") if stem in texts else []
    if captions or missing_caption == "error":
        return captions
    return [""] if missing_caption == "empty" else [os.path.basename(stem).replace("_", " ").strip()]


def _size_or_reason(path: Path) -> Size | str:
    try:
        return picture_size(path)
    except BadPictureError as error:
        return str(error)


def judge(
    root: str | Path, problems: list[Problem], good: int, on_bad_sample: str, report: str | Path | None = None
) -> None:
    """Raise SuiteError that tells the problems in one line, or warn where they may be skipped.

    ``good`` is how many samples are left, ``report`` a file that lists all problems.
    """
    if not problems:
        return
    named = ", ".join(f"{problem.id} ({problem.reason})" for problem in problems[:NAMED_IN_ERRORS])
    more = f" and {len(problems) - NAMED_IN_ERRORS} more" if len(problems) > NAMED_IN_ERRORS else ""
    where = f"; all of them: {report}" if report is not None else "; --task check lists all of them"
    told = f"{len(problems)} of {good + len(problems)} samples in {root} cannot be used: {named}{more}{where}"
    if on_bad_sample == "error":
        captions = any(problem.reason == "no caption" for problem in problems)
        remedy = "--missing_caption empty|filename, or " if captions else ""
        raise SuiteError(f"{told}; mend or remove them, or go on with {remedy}--on_bad_sample skip")
    if not good or len(problems) > max(ALWAYS_SKIPPABLE, LARGEST_SKIPPED_SHARE * (good + len(problems))):
        raise SuiteError(
            f"{told}; that is more than {LARGEST_SKIPPED_SHARE:.0%}, too many to skip: mend or remove them"
        )
    log.warning("%s; left out", told)
