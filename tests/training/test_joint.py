"""Weights that lie end to end are trained as each by itself, and are what was set last."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from gm.models import layers
from gm.training import joint as joints
from gm.training.adamw import AdamW
from gm.training.ema import EMA, in_place_of
from gm.training.joint import Joint, Memory, joins
from gm.training.lion import Lion
from gm.training.loss import DiffusionLoss
from gm.training.optimizer import items
from gm.training.step import TrainStep, tensors
from tests.training.optimizing import parameters, run

RATE = Tensor(1e-2, ms.float32)
STEPS = 3


class Training:
    """A small network, its step without clipping, and all that the step changes, by name."""

    def __init__(self, network, joint: bool):
        self.weights = network.trainable_params()
        self.optimizer = AdamW(self.weights, joint=joint)
        self.ema = EMA(self.weights, 0.9, joint=self.optimizer.joint)
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
        for parameter in self.changed:
            # A compiled branch goes on with the memory that a Parameter had at its first run.
            own = ops.assign if parameter is self.optimizer.updates else how
            own(parameter, Tensor(values[parameter.name]))


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.fixture
def batches(make_batch):
    return [make_batch(2, seed) for seed in range(2 * STEPS)]


@pytest.fixture
def several_flats(monkeypatch):
    monkeypatch.setattr(joints, "MEGABYTES", 0.002)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_learns_as_each_by_itself(small_unet, batches, several_flats, mode):
    ms.set_context(mode=mode)
    together, apart = Training(small_unet(), True), Training(small_unet(), False)
    assert 2 < len(together.optimizer.updated) < len(apart.optimizer.updated)
    for training in (together, apart):
        training.take(batches)
    found = together.values()
    for name, value in apart.values().items():  # a kernel rounds the last few numbers of a tensor in another way
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("how", [Parameter.set_data, ops.assign], ids=["set_data", "assign"])
def test_goes_on_from_what_was_set(small_unet, batches, several_flats, how):
    """As ``--resume`` does, and in a network that was compiled and trained before too."""
    training = Training(small_unet(), True)
    training.take(batches[:STEPS])
    middle = training.values()
    training.take(batches[STEPS:])
    end = training.values()
    training.set(middle, how)
    equal(middle, training.values())
    training.take(batches[STEPS:])
    equal(end, training.values())


@pytest.mark.parametrize("joint", [True, False])
def test_lending_the_average_changes_nothing(small_unet, batches, joint):
    plain, lent = Training(small_unet(), joint), Training(small_unet(), joint)
    plain.take(batches)
    for batch in batches:
        with in_place_of(lent.weights, lent.ema.state):
            pass
        lent.take([batch])
    equal(plain.values(), lent.values())


@pytest.mark.parametrize("build", [AdamW, Lion])
def test_of_any_shapes(build):
    together, apart = parameters(), parameters()
    run(build(together, joint=True))
    run(build(apart))
    for one, other in zip(together, apart):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-6)


def test_weights_are_the_memory_of_the_flat_ones_and_padding_stays_zero(small_unet, batches, several_flats):
    training = Training(small_unet(), True)
    training.take(batches)
    named = {weight.name: weight.asnumpy() for weight in training.weights}
    joint = training.optimizer.joint
    for flat, bucket in zip(joint.flats, joint.plan):
        numbers = flat.asnumpy()
        assert len(numbers) == bucket.length
        assert len(numbers) % joints.ROWS == 0
        assert numbers.ctypes.data % 64 == 0
        for item, start in zip(bucket.items, bucket.starts):
            np.testing.assert_array_equal(numbers[start : start + item.size], named[item.name].reshape(-1))
        np.testing.assert_array_equal(numbers[bucket.length - bucket.padding :], 0.0)


def test_only_what_was_replaced_is_copied_again():
    memory, weights = Memory(), parameters()
    flat = memory.lay(weights, sum(weight.size for weight in weights) + 3, "flat")
    weights[1].set_data(Tensor(np.full(weights[1].shape, 7, np.float32)))
    assert not (flat.asnumpy() == 7).any()
    memory.tie()
    assert (flat.asnumpy() == 7).sum() == weights[1].size
    assert np.shares_memory(flat.asnumpy(), weights[1].asnumpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_marks_name_each_gradient_that_has_no_finite_sum_of_squares(bad):
    weights = parameters()
    joint = Joint(items(weights), weights)
    for spoiled in range(len(weights)):
        gradients = [np.ones(weight.shape, np.float32) for weight in weights]
        gradients[spoiled].reshape(-1)[-1] = bad
        marks = joint.marks(joint(tuple(map(Tensor, gradients)))).asnumpy()
        assert [bool(np.isfinite(mark)) for mark in marks] == [index != spoiled for index in range(len(weights))]


def test_where_it_applies(monkeypatch):
    assert joins(parameters())
    assert not joins(parameters(ms.float16))
    monkeypatch.setattr(layers, "STAND_INS", {})  # as on Ascend, whose memory is its own
    assert not joins(parameters())
