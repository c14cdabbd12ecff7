"""Small checkpoints for the tests of files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gm.models.architecture import (
    OPEN_CLIP_BIG_G,
    SD_1_CLIP_L,
    SD_2_VIT_H,
    TINY_SDXL,
    AutoencoderArchitecture,
    ModelArchitecture,
    UNetArchitecture,
)
from gm.weights.ckpt import save_ckpt
from gm.weights.detect import SD_1, SD_2, SDXL_REFINER, SSD_1B, VEGA
from gm.weights.dtypes import NUMPY_TYPES, cast
from gm.weights.keys import expected_shapes

SD_AUTOENCODER = AutoencoderArchitecture(scale_factor=0.18215)
# The released models at full size, and one in miniature whose blocks are as uneven as the keys allow.
MODELS = {
    "sdxl-base": ModelArchitecture(),
    "tiny": TINY_SDXL,
    "sdxl-refiner": ModelArchitecture("sdxl-refiner", SDXL_REFINER, text_encoders=(OPEN_CLIP_BIG_G,), size_numbers=5),
    "ssd-1b": ModelArchitecture("ssd-1b", SSD_1B),
    "vega": ModelArchitecture("vega", VEGA),
    "sd-1": ModelArchitecture("sd-1", SD_1, SD_AUTOENCODER, (SD_1_CLIP_L,), 0),
    "sd-2": ModelArchitecture("sd-2", SD_2, SD_AUTOENCODER, (SD_2_VIT_H,), 0),
    "uneven": replace(
        TINY_SDXL,
        unet=UNetArchitecture(
            channels=(64, 128, 192, 192),
            down_depths=((0,), (1, 3, 2), (2, 2), (5,)),
            mid_depth=7,
            up_depths=((5, 4), (3, 2, 1), (1, 0, 2, 2), (0, 0)),
            context_dim=128,
            vector_dim=64 + 6 * 256,
            in_channels=9,
            guidance_dim=48,
        ),
    ),
}


@pytest.fixture(scope="session")
def models():
    return MODELS


@pytest.fixture(params=MODELS)
def model_name(request):
    return request.param


@pytest.fixture
def model(model_name):
    return MODELS[model_name]


def random_tensors(shapes: dict, dtype: str = "F32", seed: int = 0) -> dict:
    """Key -> (shape, format tag, array) of random values; BF16 as bits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = np.asarray(rng.normal(size=shape), np.float32)
        tensors[name] = (shape, dtype, cast(values, "F32", dtype))
    return tensors


def all_formats() -> dict:
    """One tensor of each number format, a scalar and an empty one among them."""
    rng = np.random.default_rng(7)
    tensors = {}
    for tag, kind in NUMPY_TYPES.items():
        bits = rng.integers(0, 2 if tag == "BOOL" else 127, (3, 5)).astype(kind)
        tensors[f"kind.{tag}"] = ((3, 5), tag, bits)
    tensors["scalar"] = ((), "F32", np.float32(4.6052).reshape(()))
    return tensors


@pytest.fixture(scope="session")
def tiny_shapes():
    return expected_shapes(TINY_SDXL)


@pytest.fixture(scope="session")
def tiny_tensors(tiny_shapes):
    """A whole tiny SDXL: key -> (shape, tag, array)."""
    return random_tensors(tiny_shapes)


@pytest.fixture(scope="session")
def mixed_tensors(tiny_shapes):
    """A tiny SDXL with float32, float16 and bfloat16 tensors and position_ids."""
    tensors = {}
    for index, (name, shape) in enumerate(tiny_shapes.items()):
        tensors |= random_tensors({name: shape}, ("F32", "F16", "BF16")[index % 3], index)
    ids = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    return tensors | {ids: ((1, 77), "I64", np.arange(77)[None])}


@pytest.fixture
def make_tensors():
    return random_tensors


@pytest.fixture
def every_format():
    return all_formats()


@pytest.fixture
def write_safetensors():
    """Write a safetensors file by the book, apart from the writer under test."""

    def write(path, tensors):
        header, end = {}, 0
        for name, (shape, tag, array) in tensors.items():
            header[name] = {"dtype": tag, "shape": shape, "data_offsets": [end, end + array.nbytes]}
            end += array.nbytes
        text = json.dumps(header).encode()
        contents = b"".join(array.tobytes() for _, _, array in tensors.values())
        path.write_bytes(len(text).to_bytes(8, "little") + text + contents)
        return path

    return write


@pytest.fixture
def write_ckpt():
    def write(path, tensors):
        save_ckpt(path, ((name, *rest) for name, rest in tensors.items()))
        return path

    return write
