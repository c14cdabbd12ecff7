"""What every test stands on: MindSpore's settings before its import, and examples that come out the same each time."""
# ruff: noqa: E402  (cores and variables must be set before the imports)

import importlib.util
import os

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    # One core each, before MindSpore counts them: its kernel threads spin, and two processes on the same cores stall.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached the network would be a different test each day

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings

import gm  # noqa: F401  (prepares the environment MindSpore reads at import)
from gm.models.architecture import TINY_SDXL, ModelArchitecture, UNetArchitecture
from gm.weights.ckpt import save_ckpt
from gm.weights.keys import expected_shapes

# Compiling a graph takes seconds, so a deadline per example would measure the machine.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def load_door():
    """Import a file that is part of no package, such as ``tools/docs/sharding.py``."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).resolve().parents[1] / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def write_random_model():
    """Write a .ckpt of an architecture, with values of which none is zero and that keep states of order one."""

    def write(path: Path, architecture: ModelArchitecture, seed: int = 5) -> Path:
        rng = np.random.default_rng(seed)

        def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if len(shape) < 2:
                return np.asarray(name.endswith("weight") + 0.1 * rng.normal(size=shape), np.float32)
            return np.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

        shapes = expected_shapes(architecture).items()
        save_ckpt(path, ((name, shape, "F32", values(name, shape)) for name, shape in shapes))
        return path

    return write


@pytest.fixture(scope="session")
def families() -> dict[str, ModelArchitecture]:
    """The models that have one text encoder, in miniature; like TINY_SDXL they know the tiny world's vocabulary."""
    clip, open_clip = TINY_SDXL.text_encoders
    unet = UNetArchitecture(
        channels=(64, 64),
        down_depths=((1,), (0,)),
        mid_depth=1,
        up_depths=((0, 0), (1, 1)),
        context_dim=64,
        vector_dim=None,
    )
    autoencoder = replace(TINY_SDXL.autoencoder, scale_factor=0.18215)
    vit_h = replace(open_clip, final_norm=True, pooled=False)
    return {
        "refiner": ModelArchitecture(
            "sdxl-like", replace(unet, vector_dim=64 + 5 * 256), TINY_SDXL.autoencoder, (open_clip,), size_numbers=5
        ),
        "sd-1": ModelArchitecture(
            "sd-1",
            replace(unet, channels=(32, 64), num_heads=8, linear_projection=False),
            autoencoder,
            (replace(clip, layer="last", final_norm=True),),
            size_numbers=0,
        ),
        "sd-2": ModelArchitecture("sd-2", unet, autoencoder, (vit_h,), size_numbers=0),
    }
