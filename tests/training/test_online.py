"""Training from pictures: one graph or several, from the cache or not, with the text encoders or without."""

import shutil
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.config import Config, load
from gm.data import cache
from gm.data.batches import Batches
from gm.data.encoders import NetworkEncoders
from gm.errors import SuiteError, UsageError
from gm.models import architecture as architectures
from gm.models.architecture import TINY_SDXL, ModelArchitecture, UNetArchitecture
from gm.training import assemble, metrics
from gm.training.loop import train
from gm.training.step import tensors
from gm.weights.files import open_weights
from gm.weights.merge import merge

pytestmark = pytest.mark.slow

SMALL = ModelArchitecture(
    "sdxl-like",
    UNetArchitecture(
        channels=(64,),
        down_depths=((1,),),
        mid_depth=None,
        up_depths=((1, 0),),
        context_dim=128,
        vector_dim=64 + 6 * 256,
    ),
    replace(TINY_SDXL.autoencoder, channels=(16, 16, 16, 16)),
    TINY_SDXL.text_encoders,
)
TOWER = "conditioner.embedders.0.transformer.text_model."


@pytest.fixture(scope="module")
def weight(tmp_path_factory, write_random_model):
    return write_random_model(tmp_path_factory.mktemp("weights") / "model.ckpt", SMALL)


@pytest.fixture
def config(picture_config, weight) -> Config:
    config = picture_config(32, 40)
    config.data.caption_dropout = 0.2
    config.model.weight = str(weight)
    config.train.max_train_steps, config.train.save_ckpt_interval = 3, 2
    config.optim.learning_rate = 1e-3
    return config


def parts_of(config: Config, joined: bool):
    encoders = NetworkEncoders(config)
    architecture, unet = assemble.load_unet(config)
    return assemble.assemble(config, architecture, unet, encoders if joined else None), encoders


def losses(config: Config, parts, encoders, rate: float) -> list[list[float]]:
    """What ten steps return: loss, plain loss and gradient norm."""
    with Batches.of(config, encoders=encoders) as batches:
        outputs = [parts.step.take([tensors(next(batches))], Tensor(rate, ms.float32)) for _ in range(10)]
    return [list(output.fetch()[:3]) for output in outputs]


def test_one_graph_several_graphs_and_the_cache_give_the_same_losses_along_a_run(config):
    config.data.crop, config.data.random_flip = "random", True
    config.cache.variants = 5  # the run's epochs of two steps
    joined, encoders = parts_of(config, joined=True)
    still = losses(config, joined, encoders, rate=0.0)
    moving = losses(config, joined, encoders, rate=1e-3)

    config.launch.multi_graph = True
    apart, encoders = parts_of(config, joined=False)
    assert losses(config, apart, encoders, rate=0.0) == still  # to the last digit
    assert losses(config, apart, encoders, rate=1e-3) == moving
    for one, other in zip(joined.weights, apart.weights):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
    assert len(joined.step.compile_cache) == len(apart.step.compile_cache) == 1

    config.cache.latent = config.cache.text_embedding = True
    cache.build(config, encoders, progress=False)
    cached, _ = parts_of(config, joined=False)
    np.testing.assert_allclose(losses(config, cached, encoders, rate=0.0), still, rtol=1e-5)
    np.testing.assert_allclose(losses(config, cached, encoders, rate=1e-3), moving, rtol=1e-5)
    assert np.ptp([loss for loss, _, _ in moving]) > 0.01

    exact = losses(config, cached, encoders, rate=0.0)
    config.cache.dtype = "fp16"
    cache.build(config, encoders, progress=False)
    rounded = losses(config, cached, encoders, rate=0.0)
    np.testing.assert_allclose(rounded, exact, rtol=1e-4)  # 8e-6 was measured


def summed(gather) -> dict[str, np.ndarray]:
    """The sums of the gradients by the names of their weights."""
    return {total.name.removeprefix("gradient."): total.asnumpy().copy() for total in gather.sums.totals}


def test_gradients_of_the_text_encoders_are_the_slopes_of_the_loss(config):
    config.train.text_encoders, config.optim.gradient_accumulation_steps = True, 2
    parts, encoders = parts_of(config, joined=True)
    with Batches.of(config, encoders=encoders) as batches:
        batch = tensors(next(batches))
    gather = parts.step.gather
    gather(*batch)
    gradients = {name: 2 * value for name, value in summed(gather).items()}
    trained = {p.name: p for p in parts.optimizer.trained}
    towers = {name: p for name, p in trained.items() if name.startswith("conditioner.")}
    assert all(np.abs(gradients[name]).max() > 0 for name in towers)
    assert not any(name.startswith(TOWER + "encoder.layers.1.") for name in towers)  # behind the state that is taken
    for prefix in ("conditioner.embedders.0.", "conditioner.embedders.1."):
        mine = {name: p.asnumpy() for name, p in towers.items() if name.startswith(prefix)}
        norm = np.sqrt(sum(np.square(gradients[name]).sum() for name in mine))
        length, results = 0.02, []
        for sign in (1, -1):
            for name, value in mine.items():
                towers[name].set_data(Tensor(value + sign * length * gradients[name] / norm))
            results.append(2 * float(gather(*batch)[0].asnumpy()))
        for name, value in mine.items():
            towers[name].set_data(Tensor(value))
        assert (results[0] - results[1]) / (2 * length) == pytest.approx(norm, rel=2e-2)

    config.launch.precision = "fp16"  # of the UNet: the gradients reach the towers, which stay float32, through it
    half, _ = parts_of(config, joined=True)
    half.step.gather(*batch)
    scale = float(half.scaler.scale.asnumpy())
    for name, total in summed(half.step.gather).items():
        right = gradients[name]
        assert np.linalg.norm(2 * total / scale - right) <= 2e-2 * np.linalg.norm(right) + 1e-8, name


def test_text_encoders_are_trained_saved_resumed_and_merged(config, weight, monkeypatch, tmp_path):
    monkeypatch.setitem(architectures.UNTRAINED, "tiny", SMALL)
    config.model.weight, config.model.architecture = "", "tiny"  # untrained networks, drawn from the seed
    config.train.text_encoders, config.launch.multi_graph = True, True  # which training them overrides
    config.optim.use_ema = True
    train(config)
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    for part in ("state/step_2", "weights/unet_2.ckpt", "weights/unet_ema_2.ckpt", "metrics.jsonl"):
        (resumed / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if part.startswith("state") else shutil.copy)(whole / part, resumed / part)
    (resumed / "latest").write_text("step_2\n")  # as if it had ended there
    config.train.run_name, config.train.resume = "resumed", "latest"
    train(config)
    for name in ("weights/unet_3.ckpt", "weights/unet_ema_3.ckpt", "state/step_3/optimizer.ckpt"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert [line["loss"] for line in metrics.read(whole / "metrics.jsonl")] == [
        line["loss"] for line in metrics.read(resumed / "metrics.jsonl")
    ]
    with open_weights(whole / "weights/unet_3.ckpt") as saved:
        towers = [name for name in saved.names() if name.startswith("conditioner.")]
        start = {
            parameter.name: parameter.asnumpy() for parameter in NetworkEncoders(config).conditioner.get_parameters()
        }
        assert set(towers) == set(start)
        moved = {name for name in towers if np.abs(saved.read(name) - start[name]).max() > 1e-4}
    assert {TOWER + "encoder.layers.0.mlp.fc1.weight", "conditioner.embedders.1.model.text_projection"} <= moved
    assert not any(name.startswith((TOWER + "encoder.layers.1.", TOWER + "final_layer_norm")) for name in moved)
    report = merge(weight, [whole / "weights/unet_3.ckpt"], tmp_path / "merged.ckpt")
    with open_weights(whole / "weights/unet_3.ckpt") as saved, open_weights(tmp_path / "merged.ckpt") as merged:
        assert report.replacements[0].tensors == len(saved.names())
        np.testing.assert_array_equal(merged.read(towers[0]), saved.read(towers[0]))


def test_a_tokenizer_of_another_model_is_told(config):
    encoders = NetworkEncoders(config)
    with pytest.raises(SuiteError, match=r"ids up to 49407 .* know 627: name the model's own tokenizer"):
        encoders.check_ids(np.full((1, 77), 49407, np.int32))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--cache_latent", "--cache_text_embedding"), "--cache_text_embedding keeps: leave one of them out"),
        (("--infer_during_train",), "--infer_during_train draws with the text encoders of --weight"),
    ],
)
def test_trained_text_encoders_are_neither_cached_nor_drawn_with(given, told):
    with pytest.raises(UsageError, match=told):
        load(["--data_path", "D", "--train_text_encoder", *given])
