"""CLIP score: pictures prepared as CLIP's are, the cosine of each with its own prompt, figures over all of them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from gm.errors import SuiteError
from gm.evaluation.clip_score import ClipScorer, ClipScores, prepare
from gm.models.architecture import CLIPArchitecture, TextEncoderArchitecture, VisionEncoderArchitecture
from gm.models.build import build_clip

TINY = CLIPArchitecture(
    TextEncoderArchitecture(vocab_size=627, width=64, layers=1, mlp_dim=64, projection_dim=16),
    VisionEncoderArchitecture(width=64, layers=1, mlp_dim=64, heads=2, patch_size=16, picture_size=32),
)


class Words:
    """Ids of one tokenizer: each letter, then the end."""

    def __init__(self, largest: int = 626):
        self.largest = largest

    def encode(self, texts):
        ids = np.full((len(texts), 77), self.largest, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [1 + ord(letter) % 500 for letter in text]
        return (ids,)


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.reference
@pytest.mark.parametrize(("width", "height"), [(300, 225), (64, 97), (224, 224), (30, 20), (225, 500)])
def test_pictures_are_prepared_as_transformers_does(width, height):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for mode in ("RGB", "L"):
        given = picture(width, width, height).convert(mode)
        expected = CLIPImageProcessorPil()(given, return_tensors="np")["pixel_values"][0]
        found = prepare(given, 224)
        assert found.shape == expected.shape == (3, 224, 224)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_figures_are_over_all_pictures():
    scores = ClipScores(np.array([0.3, 0.1, -0.2, 0.4]))
    assert scores.summary()["images"] == 4
    np.testing.assert_allclose(scores.scores, [30, 10, 0, 40])
    expected = {
        "mean": 0.15,
        "min": -0.2,
        "max": 0.4,
        "std": np.sqrt(np.mean((np.array([15, -5, -35, 25]) / 100) ** 2)),
    }
    for name, value in expected.items():
        assert scores.summary()["cosine"][name] == pytest.approx(value)
    assert scores.metrics()["clip_score_mean"] == pytest.approx(20)
    assert set(scores.metrics()) == {
        f"clip_{kind}_{name}" for kind in ("score", "cosine") for name in ("mean", "min", "max", "std")
    }


@pytest.fixture(scope="module")
def clip():
    ms.set_context(mode=ms.GRAPH_MODE)
    return build_clip(TINY, seed=0)


@pytest.mark.slow
def test_each_picture_is_held_against_its_own_prompt_whatever_the_batch(clip):
    pictures, prompts = [picture(seed) for seed in range(5)], ["cat", "dog", "cat", "cow", "dog"]
    scorer = ClipScorer(TINY, clip, Words(), batch_size=2)
    found = scorer.score(pictures, prompts).cosines
    assert [len(graph.compile_cache) for graph in (scorer._texts, scorer._pictures)] == [1, 1]
    shown = np.stack([prepare(one, 32) for one in pictures])
    texts = clip.embed_texts(Tensor(Words().encode(prompts)[0])).asnumpy()
    expected = (clip.embed_pictures(Tensor(shown)).asnumpy() * texts).sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again = scorer.score(pictures[::-1], prompts[::-1]).cosines
    np.testing.assert_allclose(again[::-1], found, atol=1e-6)


def test_a_foreign_tokenizer_and_a_missing_picture_are_told(clip):
    with pytest.raises(SuiteError, match=r"gives ids up to 900 and this CLIP knows 627: put its own vocab.json"):
        ClipScorer(TINY, clip, Words(900)).score([picture(0)], ["cat"])
    with pytest.raises(SuiteError, match="1 pictures and 2 prompts"):
        ClipScorer(TINY, clip, Words()).score([picture(0)], ["cat", "dog"])
