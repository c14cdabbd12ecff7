"""What weights say about their own training: what the UNet predicts, and whether its schedule ends in pure noise.

Tensors do not tell. What may lie beside them does: the record of the training run that wrote them, the metadata of a
safetensors file, the scheduler of a diffusers folder.
"""

import json
from pathlib import Path
from typing import NamedTuple

from gm.errors import SuiteError

RUN_CONFIG = "config.yaml"  # <run>/config.yaml is of <run>/weights/unet_N.ckpt
SCHEDULER = "scheduler/scheduler_config.json"
# modelspec.prediction_type (https://github.com/Stability-AI/ModelSpec)
MODELSPEC = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


class Declared(NamedTuple):
    """``prediction_type`` and ``zero_terminal_snr`` as ``source`` has them; None: nothing is said."""

    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None
    source: str = ""


def declared(path: Path) -> Declared:
    """What is said about weights; nothing that cannot be read is an error."""
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.suffix == ".safetensors":
            return _of_metadata(path)
        return _of_run(path.parent.parent / RUN_CONFIG)
    except (OSError, ValueError, AttributeError):
        return Declared()


def check_parameterisation(path: Path, prediction_type: str, zero_terminal_snr: bool, prefix: str = "") -> None:
    """Hold what weights say about themselves against the settings they are to be drawn with.

    Raises:
        SuiteError: they differ; ``prefix`` is what the flags of these weights begin with.
    """
    said = declared(path)
    for flag, kind, wanted in (
        ("prediction_type", said.prediction_type, prediction_type),
        ("rescale_betas_zero_snr", said.zero_terminal_snr, zero_terminal_snr),
    ):
        if kind is not None and kind != wanted:
            raise SuiteError(
                f"{path} was trained with {flag} {kind}, says {said.source}, and would be drawn with {wanted}: give "
                f"--{prefix}{flag} {kind}"
            )


def _of_folder(folder: Path) -> Declared:
    """Only what is out of the ordinary: exporters write the defaults of the family when they do not know."""
    said = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    kind = said.get("prediction_type")
    kind = kind if kind in ("v_prediction", "sample") else None
    return Declared(kind, True if said.get("rescale_betas_zero_snr") else None, SCHEDULER)


def _of_metadata(path: Path) -> Declared:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return Declared()
        said = json.loads(file.read(length)).get("__metadata__", {})
    return Declared(MODELSPEC.get(str(said.get("modelspec.prediction_type", "")).lower()), None, "its modelspec")


def _of_run(path: Path) -> Declared:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if not path.is_file():
        return Declared()
    try:
        said = OmegaConf.to_container(OmegaConf.load(path))["diffusion"]
        return Declared(str(said["prediction_type"]), bool(said["rescale_betas_zero_snr"]), str(path))
    except (KeyError, TypeError, YAMLError):
        return Declared()
