"""The tiny tokenizer is a CLIP tokenizer: its conventions, whole words of the world, and pieces for everything else."""

import json
import unicodedata

import pytest

from demo.tiny import tokenizer, world
from demo.tiny.tokenizer import EVERYDAY_WORDS, FOLDER
from gm.models.architecture import TINY_SDXL


@pytest.fixture(scope="module")
def clip():
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def clip_2():
    """As SDXL's second tokenizer: pads with "!"."""
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer.from_pretrained(FOLDER, pad_token="!", local_files_only=True)


def vocabulary():
    return json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))


def test_the_shipped_files_are_what_the_script_makes(tmp_path):
    tokenizer.write_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_vocabulary_follows_clip_and_fits_the_text_encoders():
    tokens = vocabulary()
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert tokens["!"] == 0
    assert tokens["!</w>"] == 256
    assert tokens["<|startoftext|>"] == len(tokens) - 2
    assert tokens["<|endoftext|>"] == len(tokens) - 1
    assert {encoder.vocab_size for encoder in TINY_SDXL.text_encoders} == {len(tokens)}


def test_every_word_of_the_world_is_one_token(clip):
    tokens = vocabulary()
    for word in [*tokenizer.world_words(), *EVERYDAY_WORDS]:
        assert clip(word, add_special_tokens=False)["input_ids"] == [tokens[word + "</w>"]]


def test_a_caption_is_lowercased_framed_and_one_token_a_word(clip):
    tokens = vocabulary()
    words = ["a", "magenta", "star", "on", "grey"]
    expected = [tokens["<|startoftext|>"], *(tokens[word + "</w>"] for word in words), tokens["<|endoftext|>"]]
    assert clip(world.caption("magenta", "star", "grey"))["input_ids"] == expected
    assert clip("A Magenta  STAR on grey")["input_ids"] == expected


def test_both_padding_conventions_of_sdxl(clip, clip_2):
    end = len(vocabulary()) - 1
    for reader, pad in ((clip, end), (clip_2, 0)):
        for text in ("", "a red circle on grey", "word " * 100):
            ids = reader(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
            assert len(ids) == 77
            assert max(ids) == end
            first_end = ids.index(end)
            assert set(ids[first_end + 1 :]) <= {pad}


@pytest.mark.parametrize("text", ["violet hexagon", "café", "日本", "naïve \u00e9\u0301", "🙂", "x" * 40, "it's 50%"])
def test_any_text_is_spelled_in_pieces_without_loss(clip, text):
    tokens = {index: token for token, index in vocabulary().items()}
    ids = clip(text, add_special_tokens=False)["input_ids"]
    assert max(ids) < len(tokens) - 2
    byte = {symbol: index for symbol, index in zip(tokenizer.byte_symbols(), byte_order())}
    spelled = "".join(tokens[index] for index in ids).replace("</w>", " ").split(" ")
    read = b" ".join(bytes(byte[symbol] for symbol in word) for word in spelled).decode()
    assert read.replace(" ", "") == normal_form(text).replace(" ", "")


def byte_order():
    """The byte of each of the first 256 ids: the printable ones, then the others, both ascending."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
    return printable + [byte for byte in range(256) if byte not in printable]


def normal_form(text):
    return unicodedata.normalize("NFC", text).lower()


def test_too_many_words_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tokenizer, "EVERYDAY_WORDS", tuple(f"{first}{second}" * 3 for first in "abcdef" for second in "xyz")
    )
    with pytest.raises(ValueError, match="more than 640"):
        tokenizer.write_tokenizer(tmp_path)
    assert not list(tmp_path.iterdir())
