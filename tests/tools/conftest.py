"""The weight tools, called as a user calls them, and small models for them."""

import numpy as np
import pytest

from gm.errors import run_door
from gm.models.architecture import TINY_SDXL
from gm.weights.ckpt import save_ckpt
from gm.weights.keys import expected_shapes


@pytest.fixture
def run(capsys, load_door):
    """Call a tool's main through its door in this process -> exit code, stdout, stderr."""

    def call(tool: str, *arguments: object):
        module = load_door(tool)
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            run_door(module.main, [str(argument) for argument in arguments])
        told = capsys.readouterr()
        return leave.value.code, told.out, told.err

    return call


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.ckpt"
    tensors = ((n, s, "F32", rng.normal(size=s).astype(np.float32)) for n, s in expected_shapes(TINY_SDXL).items())
    save_ckpt(path, ((n, s, t, np.asarray(a, np.float32)) for n, s, t, a in tensors))
    return path


@pytest.fixture
def unet(tmp_path):
    shapes = {n: s for n, s in expected_shapes(TINY_SDXL).items() if n.startswith("model.diffusion_model.")}
    path = tmp_path / "unet.ckpt"
    save_ckpt(path, ((n, s, "F32", np.ones(s, np.float32)) for n, s in shapes.items()))
    return path
