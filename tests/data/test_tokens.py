import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from gm.data.tokens import Tokenizers
from gm.errors import SuiteError

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


def test_a_folder_without_the_files_is_told(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(SuiteError, match=r"lacks merges\.txt"):
        Tokenizers.load(tmp_path)
    with pytest.raises(SuiteError, match="no tokenizer folder"):
        Tokenizers.load(tmp_path / "nowhere")


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
