"""The compiled step: accumulation, clipping, the guard against NaN, determinism, one compile."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.loss import DiffusionLoss
from gm.training.step import AccumulatingStep, TrainStep, tensors

SCALE = 0.13025
RATE = Tensor(1e-2, ms.float32)


def build(small_unet, batches=1, max_grad_norm=None, average=False):
    """(step, UNet, optimizer, EMA or None), compiled for nothing yet."""
    unet = small_unet()
    optimizer = AdamW(unet.trainable_params())
    ema = EMA(unet.trainable_params(), 0.99) if average else None
    loss = DiffusionLoss(unet, SCALE)
    if batches == 1:
        step = TrainStep(loss, optimizer, max_grad_norm, ema)
    else:
        step = AccumulatingStep(loss, optimizer, max_grad_norm, ema, batches)
    step.set_train()
    return step, unet, optimizer, ema


def values(unet) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in unet.get_parameters()}


def floats(outputs) -> list[float]:
    return [float(output.asnumpy()) for output in outputs]


def divide(batch, parts) -> list:
    pieces = [dict(zip(batch, piece)) for piece in zip(*(np.split(array, parts) for array in batch.values()))]
    return [tensors(piece) for piece in pieces]


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_accumulation_equals_the_bigger_batch(small_unet, make_batch, max_grad_norm):
    whole, whole_unet, _, _ = build(small_unet, 1, max_grad_norm)
    parted, parted_unet, _, _ = build(small_unet, 3, max_grad_norm)
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


@pytest.mark.parametrize("batches", [1, 2])
def test_not_a_number_changes_nothing_and_the_next_step_is_sound(small_unet, make_batch, batches):
    step, unet, optimizer, ema = build(small_unet, batches, average=True)
    clean, clean_unet, _, _ = build(small_unet, batches, average=True)
    bad = make_batch(2 * batches, 1)
    bad["noise"][0, 0, 0, 0] = np.nan
    first, second = (divide(make_batch(2 * batches, seed), batches) for seed in (0, 2))
    step.take(first, RATE)
    before = [p.asnumpy().copy() for p in (*unet.get_parameters(), *optimizer.state, *ema.state)]
    loss, _, norm = floats(step.take(divide(bad, batches), RATE))
    assert not np.isfinite(loss + norm)
    for parameter, value in zip((*unet.get_parameters(), *optimizer.state, *ema.state), before):
        np.testing.assert_array_equal(parameter.asnumpy(), value)
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


@pytest.mark.reference
@pytest.mark.parametrize("batches", [1, 2])
def test_twenty_steps_equal_torch(small_unet, make_batch, batches):
    torch = pytest.importorskip("torch")
    step, unet, _, _ = build(small_unet, batches, max_grad_norm=0.5)
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
