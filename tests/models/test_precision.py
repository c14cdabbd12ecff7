"""Half precision: where it is used, where it is not, and how far it is from float32."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from gm.compilation import fingerprint
from gm.models.architecture import UNetArchitecture
from gm.models.attention import MathAttention
from gm.models.build import build_unet
from gm.models.layers import Conv2d, GroupNorm, LayerNorm, Linear, Projection, generalize
from gm.models.precision import compute_in, keep_in_half, set_precision
from gm.weights.files import open_weights
from gm.weights.load import load_into, write_parameters

SMALL = UNetArchitecture(
    channels=(32,),
    down_depths=((1,),),
    mid_depth=None,
    up_depths=((0, 0),),
    context_dim=16,
    vector_dim=24,
    num_heads=2,
)


def bf16(array: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, ties to even."""
    bits = np.asarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_layers_return_the_type_they_are_given(dtype):
    picture, rows = Tensor(np.ones((1, 8, 4, 4)), dtype), Tensor(np.ones((6, 8)), dtype)
    layers = [(Conv2d(8, 4, 3), picture), (GroupNorm(2, 8), picture), (Linear(8, 4), rows), (LayerNorm(8), rows)]
    for layer, given in [*layers, (Projection(8, 4), rows)]:
        generalize(layer)
        assert layer(given).dtype == dtype, type(layer).__name__
    assert MathAttention(8)(rows, rows, rows, 2, 1).dtype == dtype


@pytest.mark.parametrize("layer", [Conv2d(8, 4, 3), GroupNorm(2, 8), Linear(8, 4), Projection(8, 4), LayerNorm(8)])
def test_a_layer_that_is_generalized_computes_the_same(layer):
    shape = (2, 8, 5, 5) if isinstance(layer, (Conv2d, GroupNorm)) else (6, 8)
    x = Tensor(np.random.default_rng(0).normal(size=shape), ms.float32)
    plain = layer(x).asnumpy()
    kind = type(layer)
    generalize(layer)
    assert type(layer) is not kind
    np.testing.assert_array_equal(layer(x).asnumpy(), plain)


@pytest.mark.parametrize("norm", [GroupNorm(2, 8), LayerNorm(8)])
def test_norms_of_half_precision_numbers_are_exact_to_a_rounding(norm):
    shape = (2, 8, 16, 16) if isinstance(norm, GroupNorm) else (2, 16, 8)
    x = (3e4 + 1e3 * np.random.default_rng(0).normal(size=shape)).astype(np.float16)
    wide = x.astype(np.float64)
    groups = wide.reshape(2, 2, -1) if isinstance(norm, GroupNorm) else wide
    expected = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True))
    generalize(norm)
    np.testing.assert_allclose(norm(Tensor(x)).asnumpy(), expected.reshape(shape), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_bfloat16_on_the_cpu_rounds_operands_and_results(layer):
    rng = np.random.default_rng(0)
    cell = Linear(8, 4) if layer == "linear" else Conv2d(8, 4, 1)
    x = rng.normal(size=(3, 8) if layer == "linear" else (3, 8, 1, 1)).astype(np.float32)
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), ms.float32))
    holder = nn.CellList([cell])
    compute_in(holder, "bf16", target="CPU")
    weight, bias = (bf16(parameter.asnumpy()) for parameter in (cell.weight, cell.bias))
    wide = bf16(x).reshape(3, 8).astype(np.float64) @ weight.reshape(4, 8).T.astype(np.float64) + bias
    ours = cell(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(ours, bf16(ours))
    np.testing.assert_allclose(ours.reshape(3, 4), wide, rtol=2**-8, atol=1e-6)


def test_bfloat16_on_ascend_is_the_type_of_the_activations():
    unet = build_unet(SMALL)
    compute_in(unet, "bf16", target="Ascend")
    assert unet.dtype == ms.bfloat16
    assert {cell.rounding for _, cell in unet.cells_and_names() if hasattr(cell, "rounding")} == {None}


def test_no_two_precisions_share_a_compiled_graph():
    found = set()
    for precision, target in [("fp32", "CPU"), ("fp16", "CPU"), ("bf16", "CPU"), ("bf16", "Ascend")]:
        unet = build_unet(SMALL)
        compute_in(unet, precision, target)
        found.add(fingerprint(unet))
    keep_in_half(unet)
    found.add(fingerprint(unet))
    assert len(found) == 5


def test_weights_in_half_leave_the_norms_alone():
    unet = build_unet(SMALL, seed=0)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in unet.get_parameters()}
    keep_in_half(unet)
    norms = {
        f"model.diffusion_model.{name}.{leaf}"
        for name, cell in unet.cells_and_names()
        if isinstance(cell, (GroupNorm, LayerNorm))
        for leaf in ("weight", "bias")
    }
    assert norms
    for parameter in unet.get_parameters():
        wanted = ms.float32 if parameter.name in norms else ms.float16
        assert parameter.dtype == wanted, parameter.name
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name].astype(parameter.asnumpy().dtype))


def test_weights_in_half_are_filled_from_a_float32_file(tmp_path):
    source, unet = build_unet(SMALL, seed=0), build_unet(SMALL)
    set_precision(unet, "fp16", param_fp16=True)
    write_parameters(tmp_path / "unet.ckpt", source)
    with open_weights(tmp_path / "unet.ckpt") as weights:
        load_into(unet, weights)
    for parameter, wide in zip(unet.get_parameters(), source.get_parameters()):
        values = parameter.asnumpy()
        np.testing.assert_array_equal(values, wide.asnumpy().astype(values.dtype))


class ScaledGradients(nn.Cell):
    """Prediction, and the gradients of its product with a direction, the loss scale in it."""

    def __init__(self, unet: nn.Cell, direction: np.ndarray):
        super().__init__(auto_prefix=False)
        self.unet, self.direction = unet, Tensor(direction, ms.float32)
        self.differentiate = ops.value_and_grad(self.loss, None, ms.ParameterTuple(unet.trainable_params()), True)

    def loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.unet(*batch)
        return 1024 * (prediction * self.direction).mean(), prediction

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, prediction), gradients = self.differentiate(*batch)
        return prediction, gradients


def shake(parameter: Parameter, rng: np.random.Generator) -> None:
    """Give a value to what begins at zero, so that gradients flow everywhere."""
    value = parameter.asnumpy().astype(np.float32)
    parameter.set_data(Tensor(value + 0.1 * rng.normal(size=value.shape) / np.sqrt(value[0].size), ms.float32))


@pytest.mark.slow
def test_a_network_in_half_precision_is_as_near_to_float32_as_its_numbers_are_fine():
    rng = np.random.default_rng(1)
    shapes = ((2, 4, 8, 8), (2,), (2, 5, SMALL.context_dim), (2, SMALL.vector_dim))
    batch = [Tensor(rng.normal(size=shape), ms.float32) for shape in shapes]
    direction = rng.normal(size=shapes[0])
    found, cells = {}, []  # the cells stay alive: collecting one compiles the others anew
    for kind in ("fp32", "fp16", "bf16"):
        unet = build_unet(SMALL, seed=0)
        noise = np.random.default_rng(2)
        for parameter in unet.get_parameters():
            shake(parameter, noise)
        if kind == "fp16":
            keep_in_half(unet)
        compute_in(unet, kind)
        cells.append(ScaledGradients(unet, direction))
        prediction, gradients = cells[-1](*batch)
        assert prediction.dtype == ms.float32
        assert [gradient.dtype for gradient in gradients] == [p.dtype for p in unet.trainable_params()]
        found[kind] = [array.asnumpy().astype(np.float64) for array in (prediction, *gradients)]
    errors = {
        kind: np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(arrays, found["fp32"])])
        for kind, arrays in found.items()
    }
    for kind, bits in (("fp16", 11), ("bf16", 8)):
        assert errors[kind][0] > 0.1 * 2**-bits, kind  # else nothing was rounded
        assert errors[kind].max() < 16 * 2**-bits, kind
