"""Lay trained weights over a whole model: what ``train.py`` saves (a UNet) over what it started from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.errors import SuiteError
from gm.weights.convert import (
    FORMATS,
    Item,
    check_ending,
    converted,
    progress,
    refuse_overwriting,
    total_bytes,
    watched,
    write_file,
)
from gm.weights.detect import is_adapter
from gm.weights.dtypes import target_tag
from gm.weights.files import WeightFile, named, open_weights, same_shape
from gm.weights.keys import PARTS


@dataclass(frozen=True)
class Replacement:
    """What one additional file replaced, in tensors.

    ``parts``: per part of the model that it touches, (part, tensors replaced, tensors of the part). ``cast``: how many
    changed their number format to the base's. ``overruled``: how many more it has that a later file replaced again.
    """

    path: Path
    tensors: int
    parts: tuple[tuple[str, int, int], ...]
    cast: int
    overruled: int


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or would do."""

    save_path: Path
    total: int
    replacements: tuple[Replacement, ...]
    kept: int

    def lines(self) -> list[str]:
        """The report as text."""
        told = []
        for replacement in self.replacements:
            parts = ", ".join(f"{part} {count} of {whole}" for part, count, whole in replacement.parts)
            line = f"{replacement.path}: replaces {replacement.tensors} of {self.total} tensors"
            line += f" ({parts})" if parts else ""
            line += f", {replacement.cast} of them cast to the base's format" if replacement.cast else ""
            line += f"; {replacement.overruled} more come from a later file" if replacement.overruled else ""
            told.append(line)
        return [*told, f"kept from the base: {self.kept} of {self.total} tensors"]


def default_save_path(base: str | Path) -> Path:
    """``folder/base.ckpt`` -> ``folder/base_merged.ckpt``."""
    base = Path(base)
    name = base.name if base.is_dir() else base.stem
    return base.with_name(name + "_merged.ckpt")


def merge(
    base: str | Path,
    additional: Sequence[str | Path],
    save_path: str | Path | None = None,
    dry_run: bool = False,
    dtype: str | None = None,
) -> MergeReport:
    """Write ``base`` with the tensors of ``additional`` in place of its own; of two that have the same, the later wins.

    The result has the base's keys and number formats, or ``dtype`` ("F32", "F16", "BF16") throughout, in the format
    that the end of ``save_path`` names.

    Raises:
        SuiteError: an additional file has a key that the base lacks, or in another shape; or an input is broken.
        UsageError: the output would overwrite an input.
    """
    target = default_save_path(base) if save_path is None else Path(save_path)
    refuse_overwriting(target, [base, *additional])
    output = FORMATS.get(target.suffix, "ckpt")
    check_ending(target, output)
    opened: list[WeightFile] = []
    try:
        for path in (base, *additional):
            opened.append(open_weights(path))
        return _merge(opened[0], opened[1:], target, output, dry_run, dtype)
    finally:
        for weights in opened:
            weights.close()


def _merge(
    base: WeightFile, additional: list[WeightFile], target: Path, output: str, dry_run: bool, dtype: str | None
) -> MergeReport:
    base.check_whole()
    origin = dict.fromkeys(base.names(buffers=True), base)
    for weights in additional:
        check_fits(base, weights)
        origin |= dict.fromkeys(weights.names(), weights)
    items = [(weights, name, target_tag(base.dtype(name), dtype)) for name, weights in origin.items()]
    if dry_run:
        check_values([item for item in items if item[0] is not base])
    else:
        write_file(target, items, output)
    replacements = tuple(_replacement(weights, base, origin, dtype) for weights in additional)
    return MergeReport(target, len(origin), replacements, sum(source is base for source in origin.values()))


def _replacement(
    weights: WeightFile, base: WeightFile, origin: dict[str, WeightFile], dtype: str | None
) -> Replacement:
    mine = [name for name, source in origin.items() if source is weights]
    counts = [
        (part, sum(name.startswith(prefixes) for name in mine), sum(name.startswith(prefixes) for name in origin))
        for part, prefixes in PARTS.items()
    ]
    cast = sum(weights.dtype(name) != base.dtype(name) for name in mine) if dtype is None else 0
    touched = tuple(count for count in counts if count[1])
    return Replacement(weights.path, len(mine), touched, cast, len(weights.names()) - len(mine))


def check_values(items: Sequence[Item]) -> None:
    """Raises SuiteError for the first NaN or infinite value, or one beyond the format it is to be written in."""
    with progress("checking", total_bytes(items)) as bar:
        for weights, name, tag in items:
            for _ in watched(converted(weights, name, tag), bar):
                pass


def check_fits(base: WeightFile, weights: WeightFile) -> None:
    """Raises SuiteError unless every tensor of ``weights`` is one of the base's, in the same shape."""
    names = weights.names()
    if is_adapter(names):
        raise SuiteError(f"{weights.path} is {weights.describe()}: merge takes files of whole parameters only")
    if not names:
        raise SuiteError(f"{weights.path} has no tensors: give a file of trained weights")
    kinds = f"{weights.path} is {weights.describe()}, {base.path} is {base.describe()}"
    strange = [name for name in names if name not in base]
    if strange:
        raise SuiteError(
            f"{kinds}: {len(strange)} of {len(names)} tensors have no place in the base ({named(strange)}); give "
            "weights that were trained from it"
        )
    other = [name for name in names if not same_shape(weights.shape(name), base.shape(name))]
    if other:
        raise SuiteError(
            f"{kinds}: {len(other)} of {len(names)} tensors have another shape ({other[0]} {weights.shape(other[0])} "
            f"instead of {base.shape(other[0])}); give weights that were trained from it"
        )
