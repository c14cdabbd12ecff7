"""Lay trained weights over a whole model: what ``train.py`` saves (a UNet) over what it started from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.errors import SuiteError
from gm.weights.convert import FORMATS, check_ending, refuse_overwriting, write_file
from gm.weights.detect import is_adapter
from gm.weights.dtypes import target_tag
from gm.weights.files import WeightFile, named, open_weights, same_shape


@dataclass(frozen=True)
class Replacement:
    """What one additional file replaced, in tensors and in tensors whose number format was cast to the base's."""

    path: Path
    tensors: int
    cast: int


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
            cast = f", {replacement.cast} of them cast to the base's format" if replacement.cast else ""
            told.append(f"{replacement.path}: replaces {replacement.tensors} of {self.total} tensors{cast}")
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
    target = Path(save_path) if save_path else default_save_path(base)
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
    base.architecture()
    origin = dict.fromkeys(base.names(buffers=True), base)
    for weights in additional:
        check_fits(base, weights)
        origin |= dict.fromkeys(weights.names(), weights)
    replacements = []
    for weights in additional:
        mine = [name for name, source in origin.items() if source is weights]
        cast = sum(weights.dtype(name) != base.dtype(name) for name in mine) if dtype is None else 0
        replacements.append(Replacement(weights.path, len(mine), cast))
    kept = sum(source is base for source in origin.values())
    if not dry_run:
        items = [(weights, name, target_tag(base.dtype(name), dtype)) for name, weights in origin.items()]
        write_file(target, items, output)
    return MergeReport(target, len(origin), tuple(replacements), kept)


def check_fits(base: WeightFile, weights: WeightFile) -> None:
    """Raises SuiteError unless every tensor of ``weights`` is one of the base's, in the same shape."""
    names = weights.names()
    if is_adapter(names):
        raise SuiteError(f"{weights.path} is {weights.describe()}: merge takes files of whole parameters only")
    strange = [name for name in names if name not in base]
    if strange or not names:
        raise SuiteError(
            f"{weights.path} has {len(strange)} of {len(names)} tensors that {base.path} lacks "
            f"({named(strange)}): the additional file is {weights.describe()}, the base {base.describe()}"
        )
    for name in names:
        if not same_shape(weights.shape(name), base.shape(name)):
            raise SuiteError(
                f"{name} is {weights.shape(name)} in {weights.path} and {base.shape(name)} in {base.path}: "
                f"the additional file is {weights.describe()}, the base {base.describe()}"
            )
