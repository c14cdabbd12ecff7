"""Checkpoints of a run: the weights to use, and beside them all that an exact resume needs.

weights/unet_N.ckpt, unet_ema_N.ckpt    the UNet after step N under its original keys
state/step_N/state.json                 step, data cursor, seed
state/step_N/optimizer.ckpt, ema.ckpt   moments and averages
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspore import Parameter

from gm.errors import SuiteError
from gm.files import write_json
from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.run_folder import RunFolder
from gm.weights.files import open_weights
from gm.weights.load import as_tensor, write_parameters


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps done, the data cursor (epoch, index) after them, and the seed of the run."""

    step: int
    cursor: tuple[int, int]
    seed: int


def save(folder: RunFolder, progress: Progress, weights: list[Parameter], optimizer: AdamW, ema: EMA | None) -> None:
    """Write weights and state of a step; the state folder appears whole, after the weights it belongs to."""
    step = progress.step
    write_parameters(folder.weights(step), weights)
    if ema is not None:
        write_parameters(folder.weights(step, average=True), ema.state, without="ema.")
    target = folder.state(step)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write_parameters(unfinished / "optimizer.ckpt", optimizer.state)
        write_json(unfinished / "state.json", asdict(progress))
        if target.exists():  # the same step again, after a resume from an earlier one
            shutil.rmtree(target)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    folder.mark_latest(step)


def read_progress(state: Path) -> Progress:
    """What ``state.json`` says.

    Raises:
        SuiteError: it is damaged.
    """
    try:
        found = json.loads((state / "state.json").read_text(encoding="utf-8"))
        return Progress(int(found["step"]), tuple(map(int, found["cursor"])), int(found["seed"]))
    except (ValueError, KeyError, TypeError):
        raise SuiteError(f"{state / 'state.json'} is damaged: resume from an earlier state folder") from None


def restore(folder: RunFolder, weights: list[Parameter], optimizer: AdamW, ema: EMA | None) -> Progress:
    """Fill weights, optimizer and averages from ``folder.resumed``, bit for bit."""
    state = folder.resumed
    progress = read_progress(state)
    fill(weights, folder.weights(progress.step))
    fill(optimizer.state, state / "optimizer.ckpt")
    if ema is not None:
        fill(ema.state, folder.weights(progress.step, average=True), without="ema.")
    return progress


def fill(parameters: list[Parameter], path: Path, without: str = "") -> None:
    """Load parameters from a file that has each of them under its name (less ``without``) and nothing else.

    Raises:
        SuiteError: the file is missing or damaged, or belongs to another configuration.
    """
    with open_weights(path) as file:
        names = {parameter.name.removeprefix(without): parameter for parameter in parameters}
        differing = set(names) ^ set(file.names())
        if differing:
            raise SuiteError(
                f"{path} is of another configuration ({len(differing)} names differ, such as {min(differing)}): "
                "resume with the settings the run was started with"
            )
        for name, parameter in names.items():
            if tuple(file.shape(name)) != tuple(parameter.shape):
                raise SuiteError(f"{path}: {name} has shape {file.shape(name)}, the network {tuple(parameter.shape)}")
            parameter.set_data(as_tensor(file, name, parameter.dtype))
