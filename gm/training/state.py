"""Checkpoints of a run: the weights to use, and beside them all that an exact resume needs.

weights/unet_N.ckpt, unet_ema_N.ckpt    the UNet after step N under its original keys
state/step_N/state.json                 step, data cursor, seed; the sizes of the files that belong to them; a checksum
state/step_N/optimizer.ckpt             what the optimizer and the step keep
state/step_N/shard_I_of_N.ckpt          what several devices share out of it (gm.training.shared_state)
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspore import Parameter

from gm.errors import SuiteError
from gm.files import replacing, write_json
from gm.parallel.world import World
from gm.training.run_folder import RunFolder
from gm.training.shared_state import EMA_PREFIX, Shares, Target, open_state, shapes_of, targets, unaveraged
from gm.weights.ckpt import CkptWriter
from gm.weights.files import WeightFile, open_weights
from gm.weights.load import as_tensor, write_parameters


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps done, the data cursor (epoch, index) after them, and the seed of the run."""

    step: int
    cursor: tuple[int, int]
    seed: int


@dataclass(frozen=True)
class Contents:
    """The parameters a checkpoint keeps: trained weights, their averages if there are any, and all other state.

    ``shares``: what of these several devices share out; the lists have the rest.
    """

    weights: list[Parameter]
    averages: list[Parameter]
    state: list[Parameter]
    shares: Shares | None = None


def save(folder: RunFolder, progress: Progress, contents: Contents, world: World | None = None) -> None:
    """Write weights and state of a step; the state folder appears whole, after the weights it belongs to.

    Of several processes each calls this; it returns when all is there.

    Raises:
        OSError, SuiteError: it could not be written; what was there before still is, and nothing else.
    """
    world = world or World()
    unfinished = folder.state(progress.step).with_name(f".step_{progress.step}.tmp")
    try:
        if contents.shares is not None:
            if world.first:  # what a process that was killed may have left
                shutil.rmtree(unfinished, ignore_errors=True)
            world.wait(f"before saving step {progress.step}")
            contents.shares.write(unfinished)
            world.wait(f"pieces of step {progress.step} written")
        if world.first:
            _finish(folder, progress, contents, unfinished)
        world.wait(f"step {progress.step} saved")
    finally:
        if world.first:
            shutil.rmtree(unfinished, ignore_errors=True)


def _finish(folder: RunFolder, progress: Progress, contents: Contents, unfinished: Path) -> None:
    target, shares = folder.state(progress.step), contents.shares
    again = target.exists()  # the same step once more, after a resume from an earlier one
    joined = nullcontext((contents.weights, contents.averages))
    if shares is not None:
        joined = shares.joined(unfinished, contents.weights, contents.averages)
    try:
        with joined as (weights, averages):
            write_parameters(folder.weights(progress.step), weights)
            if averages:
                write_parameters(folder.weights(progress.step, average=True), averages, without=EMA_PREFIX)
        write_parameters(unfinished / "optimizer.ckpt", contents.state)
        found = asdict(progress) | {"files": sizes(folder, unfinished, progress.step)}
        if shares is not None:
            found |= {"shapes": shapes_of(shares.state)}
        write_json(unfinished / "state.json", found | {"checksum": checksum(found)})
        if again:
            shutil.rmtree(target)
        os.replace(unfinished, target)
    except BaseException:
        if not again:
            folder.remove_weights(progress.step)
        raise
    folder.mark_latest(progress.step)


def sizes(folder: RunFolder, state: Path, step: int) -> dict[str, int]:
    """Bytes of the files of a checkpoint, by their names in the run's folder."""
    files = {f"weights/{path.name}": path for average in (False, True) for path in [folder.weights(step, average)]}
    files |= {f"state/step_{step}/{path.name}": path for path in sorted(state.glob("*.ckpt"))}
    return {name: path.stat().st_size for name, path in files.items() if path.exists()}


def checksum(found: dict) -> int:
    """Of everything else in ``state.json``."""
    return zlib.crc32(json.dumps(found, sort_keys=True).encode())


def read_progress(folder: RunFolder) -> Progress:
    """What ``state.json`` of the state to resume says, which must be as it was written and have all its files.

    Raises:
        SuiteError: it is damaged; names the file and an older state.
    """
    state = folder.resumed
    file = state / "state.json"
    with remedy(folder):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            progress = Progress(int(found["step"]), tuple(map(int, found["cursor"])), int(found["seed"]))
        except (ValueError, KeyError, TypeError):
            raise SuiteError(f"{file} is damaged") from None
        # A state of an earlier release has neither checksum nor files.
        if "checksum" in found and found.pop("checksum") != checksum(found):
            raise SuiteError(f"{file} was changed after it was written")
        if folder.state(progress.step).name != state.name:
            raise SuiteError(f"{file} is of step {progress.step}, its folder is named {state.name}")
        for name, size in found.get("files", {}).items():
            path = folder.path / name
            if not path.exists():
                raise SuiteError(f"{path} is missing")
            if path.stat().st_size != size:
                raise SuiteError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}")
    return progress


def restore(folder: RunFolder, contents: Contents) -> Progress:
    """Fill everything from ``folder.resumed``, bit for bit.

    Raises:
        SuiteError: a file is missing or damaged, or of another configuration; names the file and the remedy.
    """
    progress, shares = read_progress(folder), contents.shares or Shares()
    done: list[Callable[[], None]] = []
    parts = {target.name: target for target in targets(shares.weights, done)}
    weights = [parts.get(weight.name, weight) for weight in contents.weights]
    averages = [*contents.averages, *targets(shares.averages, done)]
    if shares.averages:
        averages += unaveraged(contents.weights, averages)
    with remedy(folder):
        with open_weights(folder.weights(progress.step)) as file:
            fill(weights, file)
        with open_state(folder.resumed, shapes(folder)) as file:
            fill([*contents.state, *targets(shares.state, done)], file)
        if averages:
            with open_weights(folder.weights(progress.step, average=True)) as file:
                fill(averages, file, without=EMA_PREFIX)
    for finish in done:
        finish()
    shares.fill_published({weight.name: weight for weight in contents.weights})
    return progress


def shapes(folder: RunFolder) -> dict[str, list[int]]:
    """Those of the tensors that the state to resume has in pieces."""
    return json.loads((folder.resumed / "state.json").read_text(encoding="utf-8")).get("shapes", {})


def join_state(state: Path) -> int:
    """Make a state that several devices wrote one that a single device writes; returns how many files it was in.

    It takes the place of what was there, whole or not at all. The numbers stay the same.

    Raises:
        SuiteError: no state, a damaged one, or one that is whole already.
    """
    folder = RunFolder(state.parent.parent, state)
    if not (state / "state.json").is_file():
        raise SuiteError(f"{state} is no saved state of a run: name a folder state/step_N")
    progress, files = read_progress(folder), sorted(state.glob("shard_*.ckpt"))
    if not files:
        raise SuiteError(f"{state} is whole already")
    unfinished = state.with_name(f".{state.name}.tmp")
    try:
        with open_state(state, shapes(folder)) as whole, replacing(unfinished / "optimizer.ckpt") as file:
            writer = CkptWriter(file)
            for name in whole.names():
                writer.add(name, whole.shape(name), whole.dtype(name), whole.stream(name))
        found = asdict(progress) | {"files": sizes(folder, unfinished, progress.step)}
        write_json(unfinished / "state.json", found | {"checksum": checksum(found)})
        shutil.rmtree(state)
        os.replace(unfinished, state)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(files)


@contextmanager
def remedy(folder: RunFolder) -> Iterator[None]:
    """Add to an error what to resume from instead."""
    try:
        yield
    except OtherConfigurationError:
        raise
    except SuiteError as error:
        older = folder.older(folder.resumed)
        advice = f"take an older state: --resume {older}" if older else "the run has no older state: start it anew"
        raise SuiteError(f"{error}; {advice}") from None


class OtherConfigurationError(SuiteError):
    """A state that is whole, but not of this configuration."""


def fill(parameters: Sequence[Parameter | Target], file: WeightFile, without: str = "") -> None:
    """Load parameters from a file that has each of them under its name (less ``without``) and nothing else.

    Raises:
        SuiteError: the file is missing or damaged, or belongs to another configuration.
    """
    names = {parameter.name.removeprefix(without): parameter for parameter in parameters}
    differing = set(names) ^ set(file.names())
    if differing:
        raise OtherConfigurationError(
            f"{file.path} is of another configuration ({len(differing)} names differ, such as {min(differing)}): "
            "resume with the settings the run was started with"
        )
    for name, parameter in names.items():
        if tuple(file.shape(name)) != tuple(parameter.shape):
            raise OtherConfigurationError(
                f"{file.path}: {name} has shape {file.shape(name)}, the network {tuple(parameter.shape)}: "
                "resume with the settings the run was started with"
            )
        parameter.set_data(as_tensor(file, name, parameter.dtype))
