import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from gm.config.sections.data import ModelConfig
from gm.data.tokens import Tokenizers
from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.weights.folder import ckpt_to_diffusers

FOLDER = Path(__file__).parents[2] / "demo/tiny/tokenizer"


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizers.load(FOLDER)


@pytest.fixture(scope="module")
def reference():
    return CLIPTokenizer.from_pretrained(str(FOLDER))


@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(["a", "red", "circle", "zebra"])).map(" ".join)))
def test_ids_are_those_of_transformers_with_the_padding_of_each_encoder(tokenizers, reference, text):
    ids_1, ids_2 = tokenizers.encode([text])
    expected = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    used = sum(reference(text, padding="max_length", max_length=77, truncation=True).attention_mask)
    assert ids_1[0].tolist() == expected
    assert ids_2[0].tolist() == expected[:used] + [0] * (77 - used)
    assert ids_1.dtype == ids_2.dtype == np.int32


def test_what_is_cut_off_is_counted(tokenizers):
    assert tokenizers.cut_off(["red", "red " * 75, "red " * 80, ""]).tolist() == [0, 0, 5, 0]
    ids, _ = tokenizers.encode(["red " * 80])
    assert ids.shape == (1, 77)
    assert ids[0, -1] == ids.max()


@given(words=st.integers(0, 240), chunks=st.integers(1, 3))
def test_chunks_are_what_75_tokens_alone_would_be(tokenizers, words, chunks):
    text = " ".join(["red", "circle", "blue"][index % 3] for index in range(words))
    long = Tokenizers(tokenizers.each, tokenizers.pads, chunks)
    parts = [" ".join(text.split()[first : first + 75]) for first in range(0, 75 * chunks, 75)]
    for ids, alone in zip(long.encode([text]), tokenizers.encode(parts)):
        np.testing.assert_array_equal(ids.reshape(chunks, 77), alone)
    assert long.cut_off([text]) == max(0, words - 75 * chunks)
    assert long.length == 77 * chunks
    assert (long.hash == tokenizers.hash) == (chunks == 1)


def test_the_longest_text_is_a_setting_of_the_model():
    assert Tokenizers.of(ModelConfig(tokenizer=str(FOLDER), max_token_length=225)).length == 231


def test_no_texts_are_no_rows(tokenizers):
    assert tokenizers.encode([])[0].shape == (0, 77)


def test_the_hash_follows_the_files(tmp_path, tokenizers):
    copy = tmp_path / "copy" / "tokenizer"
    shutil.copytree(FOLDER, copy)
    assert Tokenizers.load(copy).hash == tokenizers.hash
    assert Tokenizers.load(copy.parent).hash == tokenizers.hash  # as in a diffusers folder
    merges = (copy / "merges.txt").read_text().splitlines()
    (copy / "merges.txt").write_text("\n".join(merges[:-1]) + "\n")
    assert Tokenizers.load(copy).hash != tokenizers.hash
    assert Tokenizers.load(FOLDER, copy).hash != tokenizers.hash


@pytest.fixture
def weights_of(tmp_path, families, write_random_model):
    """A ModelConfig whose weights are a folder as diffusers has it, of a family's text encoders."""

    def make(family: str, *tokenizers: str) -> ModelConfig:
        architecture = TINY_SDXL if family == "sdxl" else families[family]
        write_random_model(tmp_path / "model.ckpt", replace(architecture, unet=None, autoencoder=None))
        ckpt_to_diffusers(tmp_path / "model.ckpt", tmp_path / "model")
        for name in tokenizers:
            shutil.copytree(FOLDER, tmp_path / "model" / name)
        return ModelConfig(weight=str(tmp_path / "model"))

    return make


@pytest.mark.parametrize(
    ("family", "folders", "pads"),
    [
        ("sdxl", ["tokenizer", "tokenizer_2"], [None, 0]),
        ("refiner", ["tokenizer_2"], [0]),
        ("sd-1", ["tokenizer"], [None]),
        ("sd-2", ["tokenizer"], [0]),
    ],
)
def test_each_encoder_of_each_model_has_its_own_padding_and_its_own_folder(
    weights_of, tokenizers, family, folders, pads
):
    found = Tokenizers.of(weights_of(family, *folders))
    ids = found.encode(["a red circle"])
    end = tokenizers.encode([""])[0].max()
    assert [row[0, -1] for row in ids] == [end if pad is None else pad for pad in pads]
    assert [row[0, :5].tolist() for row in ids] == [tokenizers.encode(["a red circle"])[0][0, :5].tolist()] * len(pads)


def test_a_named_tokenizer_goes_before_the_folders_own(weights_of, tmp_path, tokenizers):
    model = weights_of("sdxl", "tokenizer", "tokenizer_2")
    own = tmp_path / "model/tokenizer_2/merges.txt"
    own.write_text("\n".join(own.read_text().splitlines()[:-1]))
    assert Tokenizers.of(model).hash != tokenizers.hash
    model.tokenizer = str(FOLDER)
    assert Tokenizers.of(model).hash == tokenizers.hash
    model.tokenizer_2 = str(tmp_path / "model")  # a diffusers folder is a tokenizer folder for both
    model.tokenizer = str(tmp_path / "model")
    different = Tokenizers.of(model)
    assert different.each[0].hash == tokenizers.each[0].hash != different.each[1].hash


def test_a_diffusers_folder_without_its_tokenizer_says_where_to_put_it(weights_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    where = tmp_path / "model/tokenizer"
    model = weights_of("sd-1")
    with pytest.raises(SuiteError, match=rf"fetch vocab\.json and merges\.txt .* put them into {where}$"):
        Tokenizers.of(model)
    where.mkdir()
    (where / "vocab.json").write_text("{}")
    with pytest.raises(SuiteError, match=rf"{where} lacks merges\.txt: put"):
        Tokenizers.of(model)


def test_a_tokenizer_as_transformers_5_saves_it_is_read(tmp_path, reference, tokenizers):
    reference.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/vocab.json").exists()
    for one, other in zip(
        Tokenizers.load(tmp_path / "saved").encode(["a red zebra"]), tokenizers.encode(["a red zebra"])
    ):
        np.testing.assert_array_equal(one, other)


def test_without_weights_the_tokenizers_are_those_of_sdxl(tokenizers):
    for weight in ("", "nowhere.ckpt"):
        assert Tokenizers.of(ModelConfig(weight=weight, tokenizer=str(FOLDER))).hash == tokenizers.hash


def test_a_folder_without_the_files_is_told(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(SuiteError, match=r"lacks merges\.txt"):
        Tokenizers.load(tmp_path)
    with pytest.raises(SuiteError, match="no tokenizer folder"):
        Tokenizers.load(tmp_path / "nowhere")


def test_a_tokenizer_of_another_kind_is_told(tmp_path):
    """As GPT-2's folder, whose files have the same names."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(SuiteError, match=r"is not CLIP's, it knows no <\|startoftext\|>: fetch vocab.json and"):
        Tokenizers.load(tmp_path)


def test_broken_files_are_told(tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(SuiteError, match="tokenizer files"):
        Tokenizers.load(tmp_path)


def test_offline_a_hub_name_says_which_files_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SuiteError, match=r"fetch vocab\.json and merges\.txt .* --tokenizer") as error:
        Tokenizers.load("someone/some-model")
    assert "\n" not in str(error.value)
