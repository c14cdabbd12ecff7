"""One weight file into another: every format in, every format out, one chunk at a time."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gm.errors import SuiteError, UsageError
from gm.files import replacing
from gm.weights.ckpt import CkptWriter
from gm.weights.dtypes import NUMPY_TYPES, cast, target_tag
from gm.weights.files import WeightFile, open_weights
from gm.weights.safetensors_file import SafetensorsWriter

CAST_VALUES = 2**15  # cast at a time
FORMATS = {".ckpt": "ckpt", ".safetensors": "safetensors"}


def safetensors_to_ckpt(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """An original single file to a ``.ckpt``; ``dtype``: "F32", "F16", "BF16", or None to keep what is there."""
    convert_file(source, target, "ckpt", dtype)


def ckpt_to_safetensors(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """A ``.ckpt``, with original or MindONE names, to an original single file."""
    convert_file(source, target, "safetensors", dtype)


def convert_file(source: str | Path, target: str | Path, output: str, dtype: str | None = None) -> None:
    """Write what ``source`` (a file or a diffusers folder) holds as one file of format ``output``.

    Raises:
        SuiteError: broken input, a file that is no model, NaN values, values beyond ``dtype``, no space.
        UsageError: target and source are one file, or the target's name does not fit its format.
    """
    target = Path(target)
    refuse_overwriting(target, [source])
    check_ending(target, output)
    with open_weights(source) as weights:
        weights.check_whole()
        names = [(weights, name, target_tag(weights.dtype(name), dtype)) for name in weights.names(buffers=True)]
        write_file(target, names, output)


def refuse_overwriting(target: Path, sources: Sequence[str | Path]) -> None:
    """Raises UsageError when the output is one of the inputs, by any name, or would lie in one."""
    for source in sources:
        refuse_inside(target, source)
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise UsageError(f"output and input are the same file, {target}: choose another name for the output")
    if target.is_dir():
        raise UsageError(f"{target} is a folder: give the name of a file in it")


def refuse_inside(target: Path, source: str | Path) -> None:
    """Raises UsageError when the output would lie in an input folder."""
    if Path(source).is_dir() and target.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(f"the output {target} lies in the input {source}: choose another place for it")


def check_ending(target: Path, output: str) -> None:
    """Raises UsageError when a name promises another format than the file will have."""
    ending = {form: ending for ending, form in FORMATS.items()}[output]
    if target.suffix != ending:
        raise UsageError(f"the output {target} must end in {ending}")


def check_space(target: Path, size: int) -> None:
    """Raises SuiteError when ``size`` bytes do not fit on the disk of ``target``, before any is written."""
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    disk = shutil.disk_usage(folder)
    if disk.total and size > disk.free:  # some network disks tell nothing but zeros
        raise SuiteError(
            f"no space left on the disk at {target}: it needs {size / 1e9:.2f} GB and {disk.free / 1e9:.2f} GB are "
            "free: free some and run the same command again"
        )


Item = tuple[WeightFile, str, str]  # where from, which key, written in which format


def write_file(target: Path, items: Sequence[Item], output: str) -> None:
    """Write tensors of open weight files to ``target``, whole or not at all, with a progress bar."""
    total = total_bytes(items)
    check_space(target, total)
    with replacing(target) as file, progress(f"writing {target.name}", total) as bar:
        if output == "ckpt":
            writer = CkptWriter(file)
        else:
            writer = SafetensorsWriter(file, [(name, weights.shape(name), tag) for weights, name, tag in items])
            by_name = {item[1]: item for item in items}
            items = [by_name[name] for name in writer.names]
        for weights, name, tag in items:
            writer.add(name, weights.shape(name), tag, watched(converted(weights, name, tag), bar))


def converted(weights: WeightFile, name: str, tag: str) -> Iterator[np.ndarray]:
    """The chunks of one tensor in format ``tag``."""
    own = weights.dtype(name)
    for chunk in weights.stream(name):
        # In pieces, whose memory malloc can give again and again.
        step = len(chunk) if own == tag else CAST_VALUES
        for begin in range(0, len(chunk), step):
            try:
                yield cast(chunk[begin : begin + step], own, tag)
            except SuiteError as error:
                raise SuiteError(f"{weights.path}: {name}: {error}") from None


def total_bytes(items: Sequence[Item]) -> int:
    """Bytes of tensors in the formats they are written in."""
    return sum(tensor_bytes(weights.shape(name), tag) for weights, name, tag in items)


def tensor_bytes(shape: tuple[int, ...], tag: str) -> int:
    """Bytes of a tensor in a file."""
    return int(np.prod(shape, dtype=np.int64)) * NUMPY_TYPES[tag].itemsize


def watched(chunks: Iterator[np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    """``chunks``, counted by a progress bar."""
    for chunk in chunks:
        yield chunk
        bar.update(chunk.nbytes)


def progress(title: str, total: int) -> tqdm:
    """A bar in bytes; none where nobody watches."""
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False)
