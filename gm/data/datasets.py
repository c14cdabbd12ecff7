"""The data sets of a configuration as one list of samples."""

import contextlib
import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gm.config.sections.data import DataConfig, DatasetConfig
from gm.data.notes import FileNotes
from gm.data.prefetch import uncollected
from gm.data.sample import Found, Problem, Sample
from gm.data.sources.folder import TAR_SUFFIX, read_folder
from gm.data.sources.headers import PICTURE_SUFFIXES, Headers
from gm.data.sources.tar import expand, read_tars
from gm.errors import SuiteError
from gm.files import write_text

NAMED_IN_ERRORS = 3
# on_bad_sample=skip is for the odd broken download; more than this share means that something else is wrong.
LARGEST_SKIPPED_SHARE = 0.01
ALWAYS_SKIPPABLE = 3
TOO_MANY = f"that is more than {LARGEST_SKIPPED_SHARE:.0%}, too many to skip: mend or remove them"
KINDS = ", ".join(sorted(PICTURE_SUFFIXES))
NOTES = ".scan.json"  # beside the pictures: what was found in files that have not changed since
REPORT = "bad_samples.csv"

log = logging.getLogger(__name__)


def scan(data: DataConfig, report: Path | None = None) -> list[Sample]:
    """All usable samples, data set after data set, each sorted by id; only headers of the pictures are read.

    All problems are told in one error, each of them in the file ``report`` if given. Raises SuiteError.
    """
    samples, problems = inspect(data)
    if report is not None:
        write_report(report, problems)
    judge(data, problems, len(samples), report)
    return samples


@uncollected()
def inspect(data: DataConfig) -> tuple[list[Sample], list[Problem]]:
    """Samples and problems of all data sets. Raises SuiteError only if one has no pictures at all."""
    if lacking_class_pictures(data) == data.num_class_images:
        raise SuiteError(
            f"{data.class_data_path} has no pictures of the class yet: training and --task cache draw them first, "
            "which a dry run does not"
        )
    datasets = data_sets(data)
    samples: list[Sample] = []
    problems: list[Problem] = []
    counts: list[int] = []
    for number, (name, dataset) in enumerate(zip(names(datasets), datasets)):
        found, gone = find(dataset, data.verify == "pixels")
        if not found:
            raise SuiteError(f"no pictures in {dataset.path}: put {KINDS} files there, or tar shards with them")
        before = f"{name}/" if name else ""
        problems += [Problem(before + problem.id, problem.reason) for problem in gone]
        for one in found:
            reason, captions = _refused(one, data.minimum_image_size), _captions(one, dataset, data.missing_caption)
            if reason or not captions:
                problems.append(Problem(before + one.name, reason or "no caption"))
                continue
            weight = dataset.loss_weight
            samples.append(Sample(before + one.name, one.picture, tuple(captions), one.size, number, weight))
        counts.append(len(samples) - sum(counts))
    repeats = [1.0, counts[0] / max(counts[1], 1)] if data.with_prior_preservation else _repeats(datasets, counts)
    if set(repeats) != {1.0}:
        samples = [replace(sample, repeats=repeats[sample.dataset]) for sample in samples]
    return samples, sorted(problems, key=lambda problem: problem.id)


def data_sets(data: DataConfig) -> list[DatasetConfig]:
    """What ``data.datasets`` lists, or what the flags describe: one, or with prior preservation instance and class.

    Both of these fill half of every batch, whose loss is the mean over all: with a factor of 2 it is diffusers' sum of
    the mean of the instance and ``prior_loss_weight`` times that of the class.
    """
    if data.datasets:
        return list(data.datasets)
    instance = DatasetConfig(path=data.path, instance_prompt=data.instance_prompt)
    if not data.with_prior_preservation:
        return [instance]
    return [replace(instance, loss_weight=2.0), class_data(data)]


def class_data(data: DataConfig) -> DatasetConfig:
    """The data set of the class in DreamBooth."""
    return DatasetConfig(
        path=data.class_data_path, instance_prompt=data.class_prompt, loss_weight=2 * data.prior_loss_weight
    )


def lacking_class_pictures(data: DataConfig) -> int:
    """How many of ``num_class_images`` are not there yet."""
    if not data.with_prior_preservation:
        return 0
    folder = Path(data.class_data_path)
    there = len(find(class_data(data))[0]) if folder.suffix == TAR_SUFFIX or folder.is_dir() else 0
    return max(0, data.num_class_images - there)


def names(datasets: Sequence[DatasetConfig]) -> list[str]:
    """What goes before the ids of each data set: nothing before those of a single one, else the folder's own name."""
    if len(datasets) == 1:
        return [""]
    last = [os.path.basename(os.path.normpath(dataset.path)) for dataset in datasets]
    if len(set(last)) == len(last):
        return last
    return [f"{number}.{name}" for number, name in enumerate(last, 1)]


def judge(data: DataConfig, problems: Sequence[Problem], good: int, report: Path | None = None) -> None:
    """Raise SuiteError that tells the problems in one line, or warn where they may be skipped.

    ``good`` is how many samples are left, ``report`` a file that lists all problems.
    """
    if not problems:
        return
    root = ", ".join(dataset.path for dataset in data_sets(data))
    named = ", ".join(f"{problem.id} ({problem.reason})" for problem in problems[:NAMED_IN_ERRORS])
    more = f" and {len(problems) - NAMED_IN_ERRORS} more" if len(problems) > NAMED_IN_ERRORS else ""
    where = f"; all of them: {report}" if report is not None else "; --task check lists all of them"
    told = f"{len(problems)} of {good + len(problems)} samples in {root} cannot be used: {named}{more}{where}"
    if data.on_bad_sample == "error":
        captions = any(problem.reason == "no caption" for problem in problems)
        remedy = "--missing_caption empty|filename, or " if captions else ""
        raise SuiteError(f"{told}; mend or remove them, or go on with {remedy}--on_bad_sample skip")
    if not good or len(problems) > most_skipped(good + len(problems)):
        raise SuiteError(f"{told}; {TOO_MANY}")
    log.warning("%s; left out", told)


def most_skipped(samples: int) -> float:
    """How many of so many samples on_bad_sample=skip leaves out."""
    return max(ALWAYS_SKIPPABLE, LARGEST_SKIPPED_SHARE * samples)


def write_report(path: Path, problems: Sequence[Problem]) -> None:
    """Every problem as a line ``sample,reason``; without any there is no such file."""
    if not problems:
        with contextlib.suppress(OSError):  # of an earlier time
            path.unlink()
        return
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("sample", "reason"))
    table.writerows((problem.id, problem.reason) for problem in problems)
    write_text(path, lines.getvalue())


def find(dataset: DatasetConfig, pixels: bool = False) -> tuple[list[Found], list[Problem]]:
    """All pictures of a data set, and the listed ones that are not there."""
    if not dataset.path:
        raise SuiteError("no pictures to read: name their folder with --data_path")
    root = Path(dataset.path)
    if not root.is_dir() and dataset.path.endswith(TAR_SUFFIX):
        shards = [Path(name) for name in expand(dataset.path)]
        missing = [str(path) for path in shards if not path.is_file()]
        if missing:
            raise SuiteError(f"no shard {missing[0]}: {len(missing)} of {len(shards)} in {dataset.path} are not there")
        root = shards[0].parent
        headers = Headers(FileNotes(root / NOTES), pixels)
        found = read_tars([(path, path.name) for path in shards], headers)
        gone: list[Problem] = []
    elif root.is_dir():
        headers = Headers(FileNotes(root / NOTES), pixels)
        found, gone = read_folder(root, headers)
    else:
        raise SuiteError(f"no folder {root}: name a folder of pictures and captions, or tar shards")
    headers.notes.save()
    return found, gone


def _refused(found: Found, minimum: int) -> str | None:
    if isinstance(found.size, str):
        return found.size
    if min(found.size) < minimum:
        height, width = found.size
        return f"only {width}x{height} px: --minimum_image_size {minimum}"
    return None


def _captions(found: Found, dataset: DatasetConfig, missing_caption: str) -> Sequence[str]:
    if dataset.instance_prompt:
        return (dataset.instance_prompt,)
    missing_caption = dataset.missing_caption or missing_caption
    if found.captions or missing_caption == "error":
        return found.captions
    stem = os.path.splitext(os.path.basename(found.name))[0]
    return [""] if missing_caption == "empty" else [stem.replace("_", " ").strip()]


def _repeats(datasets: Sequence[DatasetConfig], counts: Sequence[int]) -> list[float]:
    """How often an epoch has each picture of each data set, of which ``counts`` pictures can be used.

    With weights the data sets have these shares of an epoch, which is as long as it takes for no picture to be left
    out.
    """
    if any(dataset.weight is None for dataset in datasets):
        return [dataset.repeats for dataset in datasets]
    wanted = [dataset.weight / max(count, 1) for dataset, count in zip(datasets, counts)]
    return [times / min(wanted) for times in wanted]
