"""Doubling is repetition, to the bit; its gradient is held to torch with those of the other layers."""

import mindspore as ms
import numpy as np
import pytest

from gm.models import layers
from gm.models.upsampling import upsample_nearest


@pytest.mark.parametrize("device", ["CPU", "Ascend"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pictures_double_by_repetition(dtype, device, monkeypatch):
    monkeypatch.setattr(layers, "STAND_INS", {"CPU": layers.STAND_INS.get(device, ())})
    ms.set_context(mode=ms.GRAPH_MODE)
    double = upsample_nearest()
    for size in ((5, 7), (9, 8), (3, 40), (2, 37), (1, 1)):  # small ones, parts of rows, whole rows
        x = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(dtype)
        np.testing.assert_array_equal(double(ms.Tensor(x)).asnumpy(), x.repeat(2, axis=2).repeat(2, axis=3))
