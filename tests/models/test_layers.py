"""The formulas that layers are made of, against torch: nearer than a whole network could show."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from gm.models.layers import gelu, quick_gelu, sinusoidal_embedding, upsample_nearest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.reference

SCALAR = {
    "gelu": (gelu, torch.nn.functional.gelu),
    "quick_gelu": (quick_gelu, lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": (ops.silu, torch.nn.functional.silu),
}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


class Applied(ms.nn.Cell):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, x):
        return self.function(x)


class Slope(ms.nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.slope = ops.grad(network)

    def construct(self, x):
        return self.slope(x)


@pytest.mark.parametrize("name", SCALAR)
def test_activations_and_their_slopes(name):
    ours, theirs = SCALAR[name]
    x = np.concatenate([np.linspace(-12, 12, 241), [-1e-4, 1e-4]]).astype(np.float32)
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given)
    expected.sum().backward()
    network = Applied(ours)
    np.testing.assert_allclose(network(ms.Tensor(x)).asnumpy(), expected.detach().numpy(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(Slope(network)(ms.Tensor(x)).asnumpy(), given.grad.numpy(), rtol=1e-5, atol=2e-6)


def test_pictures_double_by_repetition():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(x), scale_factor=2.0, mode="nearest").numpy()
    np.testing.assert_array_equal(Applied(upsample_nearest)(ms.Tensor(x)).asnumpy(), expected)


def test_timesteps_are_embedded_at_geometric_frequencies():
    """Cosines first; the same to one rounding of the largest angle."""
    values = torch.tensor([0.0, 0.5, 1.0, 500.0, 999.0, 4096.0])
    angles = values[:, None] * torch.exp(-np.log(10000.0) * torch.arange(160, dtype=torch.float32) / 160)
    error = np.abs(
        sinusoidal_embedding(ms.Tensor(values.numpy()), 320).asnumpy()
        - torch.cat([angles.cos(), angles.sin()], dim=1).numpy()
    )
    assert (error.max(axis=1) <= np.spacing(values.numpy()) + 1e-6).all()
