"""Diffusers folders: read as original keys, and written from them."""

from pathlib import Path

from gm.errors import SuiteError
from gm.weights.files import WeightFile


def open_folder(path: Path) -> WeightFile:
    """Open a diffusers folder under original SDXL keys."""
    raise SuiteError(f"{path} is a folder: give a .safetensors or .ckpt file")


def diffusers_to_ckpt(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """A diffusers folder to a ``.ckpt``."""
    raise SuiteError("diffusers folders are not read yet")


def ckpt_to_diffusers(
    source: str | Path, target: str | Path, dtype: str | None = None, tokenizer: str | Path | None = None
) -> None:
    """A ``.ckpt`` to a diffusers folder."""
    raise SuiteError("diffusers folders are not written yet")
