"""The formulas that layers are made of, against torch: nearer than a whole network could show."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from gm.models import layers
from gm.models.layers import gelu, quick_gelu, sinusoidal_embedding

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


def test_timesteps_are_embedded_at_geometric_frequencies():
    """Cosines first; the same to one rounding of the largest angle."""
    values = torch.tensor([0.0, 0.5, 1.0, 500.0, 999.0, 4096.0])
    angles = values[:, None] * torch.exp(-np.log(10000.0) * torch.arange(160, dtype=torch.float32) / 160)
    error = np.abs(
        sinusoidal_embedding(ms.Tensor(values.numpy()), 320).asnumpy()
        - torch.cat([angles.cos(), angles.sin()], dim=1).numpy()
    )
    assert (error.max(axis=1) <= np.spacing(values.numpy()) + 1e-6).all()


class Slopes(ms.nn.Cell):
    """The gradients by input and by parameters, for given slopes of the output."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.trained = ms.ParameterTuple(network.trainable_params())
        self.gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, x, slopes):
        return self.gradients(self.network, self.trained)(x, slopes)


class TorchGatedGELU(torch.nn.Module):
    def forward(self, x):
        value, gate = x.chunk(2, dim=-1)
        return value * torch.nn.functional.gelu(gate)


class Shifted(ms.nn.Cell):
    def __init__(self):
        super().__init__()
        self.shift = layers.ChannelShift()

    def construct(self, x):
        return self.shift(x, x[:, :, 0, 0])


class TorchShifted(torch.nn.Module):
    def forward(self, x):
        return x + x[:, :, :1, :1]


def for_inference(build):
    """A layer that is never differentiated."""
    layers.Purpose.inference = True
    try:
        return build()
    finally:
        layers.Purpose.inference = False


LAYERS = {
    "linear": (lambda: layers.Linear(24, 7), lambda: torch.nn.Linear(24, 7), (5, 24)),
    "group_norm": (lambda: layers.GroupNorm(4, 16, 1e-6), lambda: torch.nn.GroupNorm(4, 16, 1e-6), (3, 16, 6, 5)),
    "group_norm of one picture": (lambda: layers.GroupNorm(2, 8), lambda: torch.nn.GroupNorm(2, 8), (1, 8, 1, 3)),
    "group_norm and silu": (
        lambda: layers.GroupNorm(4, 16, silu=True),
        lambda: torch.nn.Sequential(torch.nn.GroupNorm(4, 16), torch.nn.SiLU()),
        (3, 16, 6, 5),
    ),
    "group_norm of many numbers": (
        lambda: layers.GroupNorm(2, 8),
        lambda: torch.nn.GroupNorm(2, 8),
        (2, 8, 70, 91),
    ),
    "layer_norm": (lambda: layers.LayerNorm(24), lambda: torch.nn.LayerNorm(24), (2, 7, 24)),
    "layer_norm of another epsilon": (
        lambda: layers.LayerNorm(16, 1e-3),
        lambda: torch.nn.LayerNorm(16, 1e-3),
        (5, 16),
    ),
    "convolution": (
        lambda: layers.Conv2d(5, 7, 3, padding=1),
        lambda: torch.nn.Conv2d(5, 7, 3, padding=1),
        (2, 5, 4, 6),
    ),
    "convolution of one pixel": (
        lambda: layers.Conv2d(3, 2, 3, padding=1),
        lambda: torch.nn.Conv2d(3, 2, 3, padding=1),
        (1, 3, 1, 1),
    ),
    "convolution of many channels": (
        lambda: layers.Conv2d(75, 139, 3, padding=1),
        lambda: torch.nn.Conv2d(75, 139, 3, padding=1),
        (2, 75, 5, 6),
    ),
    "convolution of wide pictures": (
        lambda: layers.Conv2d(4, 3, 3, padding=1),
        lambda: torch.nn.Conv2d(4, 3, 3, padding=1),
        (2, 4, 3, 300),
    ),
    "convolution of high pictures": (
        lambda: layers.Conv2d(4, 3, 3, padding=1),
        lambda: torch.nn.Conv2d(4, 3, 3, padding=1),
        (1, 4, 70, 3),
    ),
    "convolution of single pixels": (
        lambda: layers.Conv2d(40, 17, 1),
        lambda: torch.nn.Conv2d(40, 17, 1),
        (2, 40, 5, 6),
    ),
    "strided convolution": (
        lambda: layers.Conv2d(16, 4, 3, stride=2, padding=1),
        lambda: torch.nn.Conv2d(16, 4, 3, stride=2, padding=1),
        (2, 16, 5, 6),
    ),
    "convolution padded on two sides": (
        lambda: layers.Conv2d(16, 4, 3, stride=2, padding=(0, 1, 0, 1)),
        lambda: torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.Conv2d(16, 4, 3, stride=2)),
        (2, 16, 4, 6),
    ),
    "silu": (layers.SiLU, torch.nn.SiLU, (2, 3, 16)),
    "gated_gelu": (layers.GatedGELU, TorchGatedGELU, (2, 3, 16)),
    "shift": (Shifted, TorchShifted, (3, 4, 5, 2)),
    "upsample": (layers.UpsampleNearest, lambda: torch.nn.Upsample(scale_factor=2), (2, 3, 5, 7)),
    "upsample large pictures": (layers.UpsampleNearest, lambda: torch.nn.Upsample(scale_factor=2), (2, 3, 70, 91)),
}


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
@pytest.mark.parametrize("device", ["CPU", "Ascend"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_formulation_is_the_layer_and_its_gradients(name, device, mode, monkeypatch):
    """What is built on each device, on a picture far from zero: all but the plain operators run on CPU alone."""
    for table in ("STAND_INS", "KERNELS"):
        monkeypatch.setattr(layers, table, {"CPU": getattr(layers, table).get(device, ())})
    ms.set_context(mode=mode)
    ours, theirs, shape = LAYERS[name]
    ours, theirs = ours(), theirs()
    rng = np.random.default_rng(1)
    x = (2 * rng.normal(size=shape) + 3).astype(np.float32)
    for parameter, reference in zip(ours.trainable_params(), theirs.parameters()):
        value = rng.normal(size=reference.shape).astype(np.float32)
        parameter.set_data(ms.Tensor(value))
        reference.data = torch.from_numpy(value)
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given)
    slopes = rng.normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.from_numpy(slopes))
    (by_input,), by_parameters = Slopes(ours)(ms.Tensor(x), ms.Tensor(slopes))
    wanted = [expected.detach(), given.grad, *(parameter.grad for parameter in theirs.parameters())]
    for mine, other in zip([ours(ms.Tensor(x)), by_input, *by_parameters], wanted):
        scale = other.abs().max().item()
        np.testing.assert_allclose(mine.asnumpy(), other.numpy(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_a_product_with_a_bias_is_the_same_in_one_kernel(mode):
    ms.set_context(mode=mode)
    rng = np.random.default_rng(4)
    x, weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 24), (7, 24), (7,)))
    linear = for_inference(lambda: layers.Linear(24, 7))
    assert linear.fused is not None
    linear.weight.set_data(ms.Tensor(weight))
    linear.bias.set_data(ms.Tensor(bias))
    np.testing.assert_allclose(linear(ms.Tensor(x)).asnumpy(), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


NORMS = {
    "group_norm": (lambda: layers.GroupNorm(2, 8), (2, 8, 5, 12), 4 * 60),
    "layer_norm": (lambda: layers.LayerNorm(12), (2, 8, 5, 12), 12),
}


@pytest.mark.parametrize("name", NORMS)
def test_what_is_not_finite_or_constant_stays_where_it_is(name):
    """The other pictures, the next ones too, are what they were without; what is constant is nothing, with slope 0."""
    build, shape, width = NORMS[name]
    norm, rng = build(), np.random.default_rng(5)
    slopes = Slopes(norm)
    good, along = (rng.normal(size=shape).astype(np.float32) for _ in range(2))

    def both(x):
        (by_input,), _ = slopes(ms.Tensor(x), ms.Tensor(along))
        return [found.asnumpy().reshape(-1, width) for found in (norm(ms.Tensor(x)), by_input)]

    expected = both(good)
    for number in (np.nan, np.inf, -3e38):
        bad = good.copy()
        bad.reshape(-1, width)[0, 3] = number
        for spoilt, right in zip(both(bad), expected):
            np.testing.assert_array_equal(spoilt[1:], right[1:])
        for again, right in zip(both(good), expected):
            np.testing.assert_array_equal(again, right)
    constant = good.copy()
    constant.reshape(-1, width)[1] = 0.5
    out, by_input = both(constant)
    np.testing.assert_array_equal(out[1], 0)
    given = along.reshape(-1, width)[1]
    np.testing.assert_allclose(by_input[1], (given - given.mean()) / np.sqrt(1e-5), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("layer", NORMS)
def test_norms_do_not_cancel_far_from_zero(layer, half):
    """A mean of 500 standard deviations costs float32 three of its seven digits, not all: deviations are squared."""
    rng = np.random.default_rng(2)
    build, shape, width = NORMS[layer]
    ours = build()
    if half:
        layers.generalize(ours)
    x = rng.normal(500.0, 1.0, shape).astype(np.float16 if half else np.float32)
    slopes = rng.normal(size=x.shape).astype(x.dtype)
    out, ((by_input,), _) = ours(ms.Tensor(x)), Slopes(ours)(ms.Tensor(x), ms.Tensor(slopes))
    rows, given = (array.astype(np.float64).reshape(-1, width) for array in (x, slopes))
    deviation = rows - rows.mean(axis=1, keepdims=True)
    rate = 1.0 / np.sqrt((deviation**2).mean(axis=1, keepdims=True) + 1e-5)
    normal = deviation * rate
    wanted = rate * (given - given.mean(axis=1, keepdims=True) - normal * (given * normal).mean(axis=1, keepdims=True))
    tolerance = 2**-9 if half else 2e-4
    for mine, right in ((out, normal), (by_input, wanted)):
        assert mine.dtype == (ms.float16 if half else ms.float32)
        np.testing.assert_allclose(mine.asnumpy().reshape(right.shape), right, atol=tolerance * np.abs(right).max())
