"""A compiled step goes on from the weights that were set last, as when they lend their place to the average."""

from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from gm.models import layers
from gm.training.adamw import AdamW
from gm.training.ema import EMA, in_place_of
from gm.training.loss import DiffusionLoss
from gm.training.step import TrainStep, tensors

RATE = Tensor(1e-2, ms.float32)
STEPS = 3
WAYS = pytest.mark.parametrize("kernels", [layers.KERNELS, {"CPU": ()}], ids=["kernels", "operators"])


class Training:
    """A small network, its step, and all that the step changes, by name."""

    def __init__(self, network):
        self.weights = network.trainable_params()
        self.optimizer = AdamW(self.weights)
        self.ema = EMA(self.weights, 0.9)
        self.step = TrainStep(DiffusionLoss(network, 0.13025), self.optimizer, None, self.ema)
        self.step.set_train()

    def take(self, batches) -> None:
        for batch in batches:
            self.step.take([tensors(batch)], RATE).fetch()

    @property
    def changed(self) -> list[Parameter]:
        return [*self.weights, *self.optimizer.state, *self.ema.state]

    def values(self) -> dict[str, np.ndarray]:
        return {parameter.name: parameter.asnumpy().copy() for parameter in self.changed}

    def set(self, values: dict[str, np.ndarray], how) -> None:
        """The weights by ``how``; the state in place, as what only a compiled branch takes keeps its first memory."""
        for parameter in self.changed:
            own = how if any(parameter is weight for weight in self.weights) else ops.assign
            own(parameter, Tensor(values[parameter.name]))


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.fixture
def batches(make_batch):
    return [make_batch(2, seed) for seed in range(2 * STEPS)]


def build(small_unet, kernels) -> Training:
    with mock.patch.dict(layers.KERNELS, kernels):
        return Training(small_unet())


@WAYS
@pytest.mark.parametrize("how", [Parameter.set_data, ops.assign], ids=["set_data", "assign"])
def test_goes_on_from_what_was_set(small_unet, batches, how, kernels):
    training = build(small_unet, kernels)
    training.take(batches[:STEPS])
    middle = training.values()
    training.take(batches[STEPS:])
    end = training.values()
    training.set(middle, how)
    equal(middle, training.values())
    training.take(batches[STEPS:])
    equal(end, training.values())


@WAYS
def test_lending_the_average_changes_nothing(small_unet, batches, kernels):
    plain, lent = build(small_unet, kernels), build(small_unet, kernels)
    plain.take(batches)
    for batch in batches:
        with in_place_of(lent.weights, lent.ema.state):
            pass
        lent.take([batch])
    equal(plain.values(), lent.values())
