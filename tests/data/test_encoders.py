import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import GRAPH_MODE, Parameter, set_context
from safetensors.numpy import save_file

from gm.data import cache
from gm.data.batches import Batches
from gm.data.encoders import NetworkEncoders
from gm.data.tokens import Tokenizers
from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.models.build import build_autoencoder, build_conditioner, build_unet
from gm.weights.load import write_parameters


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    set_context(mode=GRAPH_MODE)
    small = dataclasses.replace(TINY_SDXL.autoencoder, channels=(32, 32, 32, 32))
    cells = (build_autoencoder(small, 1), build_conditioner(TINY_SDXL, 2), build_unet(TINY_SDXL.unet, 3))
    return {parameter.name: parameter.asnumpy() for cell in cells for parameter in cell.get_parameters()}


@pytest.fixture
def encoders_of(config, tmp_path, tensors):
    """Encoders of a file with the tensors, one of them changed or some left out."""

    def make(changed: str = "", dtype: type = np.float32, without: str = "none"):
        config.model.weight, config.model.tokenizer = str(tmp_path / "weights.safetensors"), "demo/tiny/tokenizer"
        values = {name: value + (name == changed) for name, value in tensors.items() if not name.startswith(without)}
        save_file({name: np.asarray(value, dtype) for name, value in values.items()}, config.model.weight)
        return NetworkEncoders(config)

    return make


def hashes(encoders):
    return encoders.picture_hash, encoders.text_hash


def test_hashes_change_with_the_weights_that_matter_and_no_others(encoders_of):
    picture, text = hashes(encoders_of())
    for name in ("first_stage_model.decoder.conv_in.weight", "model.diffusion_model.out.2.weight"):
        assert hashes(encoders_of(name)) == (picture, text)
    changed = hashes(encoders_of("first_stage_model.quant_conv.weight"))
    assert changed[0] != picture
    assert changed[1] == text
    changed = hashes(encoders_of("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"))
    assert changed[0] == picture
    assert changed[1] != text


def test_hashes_change_with_what_the_weights_do_not_say(encoders_of):
    before = hashes(encoders_of())
    encoders = encoders_of()
    model = encoders.architecture
    text = (dataclasses.replace(model.text_encoders[0], layer="last"), model.text_encoders[1])
    encoders.architecture = dataclasses.replace(
        model, text_encoders=text, autoencoder=dataclasses.replace(model.autoencoder, scale_factor=1.5)
    )
    after = hashes(encoders)
    assert after[0] == before[0]  # training scales the latents
    assert after[1] != before[1]


def test_hashes_do_not_depend_on_the_file_format(encoders_of, tensors, config, tmp_path):
    half = hashes(encoders_of(dtype=np.float16))
    config.model.weight = str(tmp_path / "weights.ckpt")
    widened = [Parameter(np.asarray(np.float16(value), np.float32), name=name) for name, value in tensors.items()]
    write_parameters(config.model.weight, widened[::-1])
    assert hashes(NetworkEncoders(config)) == half


def test_hashes_of_a_large_file_are_remembered(encoders_of, config, monkeypatch):
    monkeypatch.setattr("gm.data.notes.YOUNG", -1)
    before = hashes(encoders_of())
    monkeypatch.setattr("gm.data.encoders.weights_hash", lambda *_: pytest.fail("read again"))
    assert hashes(NetworkEncoders(config)) == before


def test_training_from_the_cache_is_training_from_the_pictures(encoders_of, config, tensors):
    encoders = encoders_of()
    config.data.caption_dropout = 0.3
    cache.build(config, progress=False)
    with Batches.of(config) as cached:
        config.cache.latent = config.cache.text_embedding = False
        with Batches(config, cached._samples, None, encoders, Tokenizers.load("demo/tiny/tokenizer")) as online:
            for _ in range(4):
                one, other = next(cached), next(online)
                for name in one:
                    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_without_the_networks_are_told(encoders_of, config):
    with pytest.raises(SuiteError, match="has no autoencoder"):
        _ = encoders_of(without="first_stage_model").picture_hash
    config.model.weight = "nowhere.ckpt"
    with pytest.raises(SuiteError, match=r"no weights at nowhere\.ckpt"):
        _ = NetworkEncoders(config).text_hash


def test_without_weights_the_networks_are_drawn_from_the_seed(config):
    config.model.weight, config.model.architecture = "", "tiny"
    made = [NetworkEncoders(config), NetworkEncoders(config)]
    config.train.seed += 1
    made.append(NetworkEncoders(config))
    names = ("first_stage_model.encoder.conv_in.weight", "conditioner.embedders.0.transformer.text_model")
    values = []
    for encoders in made:
        cells = (encoders.autoencoder, encoders.conditioner)
        every = {parameter.name: parameter for cell in cells for parameter in cell.get_parameters()}
        values.append([every[next(key for key in every if key.startswith(name))].asnumpy() for name in names])
    for one, same, other in zip(*values):
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 1e-3
    assert hashes(made[0]) == hashes(made[1])
    assert not set(hashes(made[0])) & set(hashes(made[2]))


def test_a_tokenizer_of_another_model_is_told(encoders_of):
    ids = np.full((1, 77), 49407, np.int32)
    with pytest.raises(SuiteError, match=r"ids up to 49407 .* know \d+: name the model's own tokenizer"):
        encoders_of().encode_text(ids, ids)


ROOT = Path(__file__).parents[2]
CACHE = """
import json, sys
from gm import compilation, launch
from gm.config import load
from gm.data import cache
config = load(sys.argv[1:])
launch.start(config.launch)
cache.build(config, progress=False)
print(json.dumps([(each.what, each.from_cache) for each in compilation.done()]))
"""


@pytest.mark.slow
def test_a_second_process_takes_kept_graphs_and_makes_the_same_bytes(
    tmp_path, pictures, files, families, write_random_model
):
    """Of a model without a pooled state: None among a graph's outputs cannot be kept."""
    weight = write_random_model(tmp_path / "model.ckpt", families["sd-1"])
    flags = ["--weight", weight, "--tokenizer", "demo/tiny/tokenizer", "--data_path", pictures, "--resolution", "32"]
    flags += ["--cache_latent", "True", "--cache_text_embedding", "True", "--compile_cache", tmp_path / "graphs"]
    flags += ["--device_target", "CPU", "--threads", "1"]
    made, program = [], tmp_path / "program.py"  # MindSpore looks whether the program is the same
    program.write_text(CACHE)
    for name in ("one", "two"):
        command = [sys.executable, program, *map(str, flags), "--cache_path", str(tmp_path / name)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        made.append(json.loads(done.stdout.splitlines()[-1]))
    assert made == [[["AutoencoderEncoder", kept], ["TextConditioner", kept]] for kept in (False, True)]
    assert files(tmp_path / "one") == files(tmp_path / "two")
