"""The compiled step: accumulation, clipping, the guard against NaN, determinism, one compile."""

from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.models import layers
from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.loss import DiffusionLoss
from gm.training.scaler import LossScale
from gm.training.step import AccumulatingStep, TrainStep, tensors

SCALE = 0.13025
RATE = Tensor(1e-2, ms.float32)


def build(small_unet, batches=1, max_grad_norm=None, average=False, scaler=None, kernels=True, **types):
    """(step, UNet, optimizer, EMA or None), compiled for nothing yet; without ``kernels`` as on Ascend."""
    with mock.patch.dict(layers.KERNELS, {} if kernels else {"CPU": ()}):
        return assembled(small_unet, batches, max_grad_norm, average, scaler, types)


def assembled(small_unet, batches, max_grad_norm, average, scaler, types):
    unet = small_unet(**types)
    weights = unet.trainable_params()
    optimizer = AdamW(weights)
    ema = EMA(weights, 0.99, masters=optimizer.wide(weights)) if average else None
    loss = DiffusionLoss(unet, SCALE)
    if batches == 1:
        step = TrainStep(loss, optimizer, max_grad_norm, ema, scaler)
    else:
        step = AccumulatingStep(loss, optimizer, max_grad_norm, ema, batches, scaler)
    step.set_train()
    return step, unet, optimizer, ema


def values(unet) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in unet.get_parameters()}


HALF = {"dtype": ms.float16}
PURE_HALF = {"dtype": ms.float16, "weights": ms.float16}


def held(unet, optimizer, ema) -> list[np.ndarray]:
    """Copies of all that a step may change, but for the loss scale."""
    return [p.asnumpy().copy() for p in (*unet.get_parameters(), *optimizer.state, *ema.state)]


def floats(outputs) -> list[float]:
    """Weighted loss, plain loss, gradient norm."""
    return list(outputs.fetch()[:3])


def divide(batch, parts) -> list:
    pieces = [dict(zip(batch, piece)) for piece in zip(*(np.split(array, parts) for array in batch.values()))]
    return [tensors(piece) for piece in pieces]


@pytest.mark.parametrize(("max_grad_norm", "kernels"), [(None, True), (0.05, True), (0.05, False)])
def test_accumulation_equals_the_bigger_batch(small_unet, make_batch, max_grad_norm, kernels):
    whole, whole_unet, _, _ = build(small_unet, 1, max_grad_norm, kernels=kernels)
    parted, parted_unet, _, _ = build(small_unet, 3, max_grad_norm, kernels=kernels)
    for seed in range(5):
        batch = make_batch(6, seed)
        expected = floats(whole.take([tensors(batch)], RATE))
        assert floats(parted.take(divide(batch, 3), RATE)) == pytest.approx(expected, rel=1e-5)
    assert len(parted.gather.compile_cache) == len(parted.apply.compile_cache) == 1
    for name, value in values(whole_unet).items():
        np.testing.assert_allclose(values(parted_unet)[name], value, rtol=1e-4, atol=1e-5)


def test_clipping_reports_the_norm_before_it(small_unet, make_batch):
    free, _, free_optimizer, _ = build(small_unet)
    clipped, _, clipped_optimizer, _ = build(small_unet, max_grad_norm=1e-3)
    batch = [tensors(make_batch(4))]
    norms = [floats(step.take(batch, RATE))[2] for step in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 1e-3
    for one, other in zip(free_optimizer.adam_m, clipped_optimizer.adam_m):
        np.testing.assert_allclose(other.asnumpy(), one.asnumpy() * 1e-3 / norms[0], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("batches", "kernels"), [(1, True), (2, True), (1, False)])
def test_not_a_number_changes_nothing_and_the_next_step_is_sound(small_unet, make_batch, batches, kernels):
    step, unet, optimizer, ema = build(small_unet, batches, average=True, kernels=kernels)
    clean, clean_unet, _, _ = build(small_unet, batches, average=True, kernels=kernels)
    bad = make_batch(2 * batches, 1)
    bad["noise"][0, 0, 0, 0] = np.nan
    first, second = (divide(make_batch(2 * batches, seed), batches) for seed in (0, 2))
    step.take(first, RATE)
    before = held(unet, optimizer, ema)
    outputs = step.take(divide(bad, batches), RATE)
    assert not outputs.fetch().sound
    assert outputs.not_finite(optimizer.taken) == [p.name for p in optimizer.taken]
    for now, value in zip(held(unet, optimizer, ema), before):
        np.testing.assert_array_equal(now, value)
    step.take(second, RATE)
    clean.take(first, RATE)
    clean.take(second, RATE)
    for name, value in values(clean_unet).items():
        np.testing.assert_array_equal(values(unet)[name], value)


def test_learns_the_same_bits_every_time_and_compiles_once(small_unet, make_batch):
    curves = []
    for _ in range(2):
        step, _, _, _ = build(small_unet, max_grad_norm=1.0, average=True)
        rates = [1e-2 / (1 + index) for index in range(30)]
        batch = [tensors(make_batch(2))]
        curves.append([floats(step.take(batch, Tensor(rate, ms.float32)))[0] for rate in rates])
        assert len(step.compile_cache) == 1
    assert curves[0] == curves[1]
    assert curves[0][-1] < 0.9 * curves[0][0]


def test_graph_equals_pynative(small_unet, make_batch):
    curves = []
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        ms.set_context(mode=mode)
        step, _, _, _ = build(small_unet, max_grad_norm=0.1, average=True)
        curves.append([floats(step.take([tensors(make_batch(2, seed))], RATE)) for seed in range(4)])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)


def test_average_follows_the_weights(small_unet, make_batch):
    step, unet, _, ema = build(small_unet, average=True)
    expected = values(unet)
    for update in range(4):
        step.take([tensors(make_batch(2, update))], RATE)
        rate = min(0.99, (1 + update) / (10 + update))
        expected = {name: rate * expected[name] + (1 - rate) * value for name, value in values(unet).items()}
    for average in ema.state:
        np.testing.assert_allclose(average.asnumpy(), expected[average.name.removeprefix("ema.")], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("batches", "types"), [(1, HALF), (2, PURE_HALF)])
def test_an_overflow_is_skipped_and_counted_and_the_scale_halves(small_unet, make_batch, batches, types):
    scaler = LossScale(2.0**24, window=2)
    step, unet, optimizer, ema = build(small_unet, batches, 1.0, average=True, scaler=scaler, **types)
    before, scale, skipped, taken = held(unet, optimizer, ema), 2.0**24, 0, 0
    for seed in range(40):
        numbers = step.take(divide(make_batch(2 * batches, seed), batches), RATE).fetch()
        assert numbers.loss_scale == scale
        now = held(unet, optimizer, ema)
        if not np.isfinite(numbers.grad_norm):
            scale, skipped = scale / 2, skipped + 1
            for one, other in zip(now, before):
                np.testing.assert_array_equal(one, other)
        else:
            taken += 1
            assert optimizer.updates.asnumpy() == taken
            assert any(not np.array_equal(one, other) for one, other in zip(now, before))
            scale = float(scaler.scale.asnumpy())
        assert numbers.sound
        assert (numbers.skipped_steps, float(scaler.scale.asnumpy())) == (skipped, scale)
        before = now
    assert min(skipped, taken) > 2  # else the test has seen one side only


@pytest.mark.parametrize(("batches", "types"), [(2, HALF), (1, PURE_HALF)])
def test_half_precision_with_a_loss_scale_follows_float32(small_unet, make_batch, batches, types):
    curves = []
    for scaler, chosen in ((None, {}), (LossScale(1024.0, window=5), types)):
        step, _, _, _ = build(small_unet, batches, 0.5, scaler=scaler, **chosen)
        batch = [divide(make_batch(2 * batches, seed), batches) for seed in range(12)]
        curves.append(np.array([floats(step.take(parts, RATE)) for parts in batch]))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-2)
    assert not np.array_equal(*curves)


def test_in_float32_the_loss_scale_changes_nothing(small_unet, make_batch):
    curves = []
    for scaler in (None, LossScale(2.0**16, window=3)):
        step, _, _, _ = build(small_unet, 1, 0.5, scaler=scaler)
        curves.append([floats(step.take([tensors(make_batch(2, seed))], RATE)) for seed in range(6)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)


@pytest.mark.parametrize(("types", "kernels"), [({}, True), ({}, False), (HALF, True)])
def test_the_gradient_that_is_not_finite_is_named(small_unet, make_batch, types, kernels):
    """The text is infinite, so its weight's gradient is, while tanh keeps prediction and loss finite."""
    step, _, optimizer, _ = build(small_unet, scaler=LossScale(1.0) if types else None, kernels=kernels, **types)
    batch = make_batch(2)
    batch["context"][0, 0, 0] = np.inf
    outputs = step.take([tensors(batch)], RATE)
    numbers = outputs.fetch()
    assert np.isfinite(numbers.loss)
    assert not numbers.sound  # with a scale too: it cannot be smaller
    assert outputs.not_finite(optimizer.taken) == ["model.text.weight"]


@pytest.mark.reference
@pytest.mark.parametrize(("batches", "kernels"), [(1, True), (2, True), (1, False)])
def test_twenty_steps_equal_torch(small_unet, make_batch, batches, kernels):
    torch = pytest.importorskip("torch")
    step, unet, _, _ = build(small_unet, batches, max_grad_norm=0.5, kernels=kernels)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in values(unet).items()}
    decayed = [parameter for parameter in theirs.values() if parameter.ndim > 1]
    others = [parameter for parameter in theirs.values() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for seed in range(20):
        batch = make_batch(4, seed)
        optimizer.zero_grad()
        loss = torch_loss(torch, theirs, {name: torch.from_numpy(array) for name, array in batch.items()})
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        optimizer.step()
        ours = floats(step.take(divide(batch, batches), RATE))
        assert ours[0] == pytest.approx(loss.item(), rel=1e-4)
        assert ours[2] == pytest.approx(norm.item(), rel=1e-3)
    for name, value in values(unet).items():
        their = theirs[name].detach().numpy()
        assert np.linalg.norm(value - their) <= 1e-3 * np.linalg.norm(their), name


def torch_loss(torch, weights, batch):
    """The weighted loss of ``SmallUNet``, written for torch."""
    alpha, sigma, target_noise, target_latents = (
        batch[name].reshape(-1, 1, 1, 1) for name in ("alpha", "sigma", "target_noise", "target_latents")
    )
    mean, logvar = batch["moments"].chunk(2, dim=1)
    latents = (mean + (0.5 * logvar.clamp(-30, 20)).exp() * batch["posterior_noise"]) * SCALE
    angles = batch["time_ids"].reshape(-1, 1) * 10000.0 ** (-torch.arange(128) / 128)
    sizes = torch.cat([angles.cos(), angles.sin()], dim=1).reshape(len(mean), -1)
    vector = torch.cat([batch["pooled"], sizes], dim=1)
    condition = batch["context"].mean(1) @ weights["model.text.weight"] + 0.01 * vector @ weights["model.label.weight"]
    condition = condition + 0.001 * batch["timesteps"].reshape(-1, 1)
    hidden = (alpha * latents + sigma * batch["noise"]).permute(0, 2, 3, 1) @ weights["model.in.weight"]
    hidden = torch.tanh(hidden + weights["model.in.bias"] + condition.reshape(-1, 1, 1, 8))
    prediction = (hidden @ weights["model.out.weight"]).permute(0, 3, 1, 2)
    target = target_noise * batch["noise"] + target_latents * latents
    return (((prediction - target) ** 2).mean(dim=(1, 2, 3)) * batch["weight"]).mean()
