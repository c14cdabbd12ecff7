"""Adafactor is transformers', on matrices; kernels are matrices too, and vectors are not factored."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.training.adafactor import Adafactor, matrix_shape
from tests.training.optimizing import Driver, parameters, run, torch_parameters, torch_run


def as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], -1) if len(shape) > 1 else tuple(shape)


@pytest.mark.reference
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_equals_transformers(mode, relative):
    torch = pytest.importorskip("torch")
    theirs_module = pytest.importorskip("transformers.optimization")
    ms.set_context(mode=mode)
    trained = parameters()
    theirs = torch_parameters(torch, trained, as_matrix)
    flags = {"relative_step": relative, "scale_parameter": relative, "warmup_init": False}
    lr = None if relative else 1.0  # relative steps are at most 1e-2 there
    torch_run(torch, lambda groups: theirs_module.Adafactor(groups, lr=lr, **flags), theirs, decay=0.1)
    optimizer = Adafactor(trained, weight_decay=0.1, relative=relative)
    run(optimizer, rate=1e-2 if relative else None)
    for ours, their in zip(trained, theirs):
        their = their.detach().numpy().reshape(ours.shape)
        assert np.linalg.norm(ours.asnumpy() - their) <= 1e-5 * np.linalg.norm(their), ours.name
        np.testing.assert_allclose(ours.asnumpy(), their, rtol=1e-5, atol=1e-6)


def test_its_state_is_two_vectors_a_matrix():
    weight = Parameter(Tensor(np.ones((64, 32, 3, 3)), ms.float32), name="conv.weight")
    assert sum(parameter.size for parameter in Adafactor([weight]).moments) == 64 + 32 * 9
    assert [matrix_shape(shape) for shape in ((5,), (5, 7), (5, 7, 3, 3))] == [(1, 5), (5, 7), (5, 63)]


def test_means_keep_their_precision_over_millions_of_numbers():
    gradient = np.random.default_rng(0).standard_normal((1500, 2000)).astype(np.float32)
    weight = Parameter(Tensor(np.zeros(gradient.shape), ms.float32), name="weight")
    Driver(Adafactor([weight], weight_decay=0.0))(Tensor(1.0, ms.float32), Tensor(gradient))
    square = gradient.astype(np.float64) ** 2
    row, column = square.mean(1), square.mean(0)
    update = gradient / np.sqrt(np.outer(row / row.mean(), column))
    update /= max(1.0, np.sqrt((update**2).mean()))
    np.testing.assert_allclose(weight.asnumpy(), -update, rtol=1e-5, atol=1e-6)
