from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.data.tokens import Tokenizers
from gm.models.architecture import TINY_SDXL
from gm.sampling.emphasis import Emphasis, emphasise, fragments, plain, token_weights

TOKENIZER = Path(__file__).parents[2] / "demo/tiny/tokenizer"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [  # the first eight: the examples of the web UI's parse_prompt_attention
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("[word]", [("word", 1 / 1.1)]),
        ("[[a] b", [("a", 1 / 1.21), (" b", 1 / 1.1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("ratio 16:9 ) ]", [("ratio 16:9 ) ]", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_prompts_are_read_as_the_web_ui_reads_them(prompt, expected):
    found = fragments(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in expected], rtol=1e-12)


@given(st.text(alphabet="ab :.1()[]\\", max_size=30))
def test_no_prompt_is_too_odd_and_letters_stay(prompt):
    found = fragments(prompt)
    assert all(np.isfinite(weight) for _, weight in found)
    kept = "".join(text for text, _ in found)
    assert [letter for letter in kept if letter in "ab"] == [letter for letter in prompt if letter in "ab"]


def states():
    return np.random.default_rng(0).normal(0.3, 1, (77, 10)).astype(np.float32)


def test_a_weight_scales_its_tokens_and_the_mean_stays():
    weights = np.ones(77)
    weights[3] = 1.5
    context = states()
    found = emphasise(context, weights)
    ratio = found / context
    np.testing.assert_allclose(ratio[3] / ratio[0], 1.5, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), context.mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizers.load(TOKENIZER, encoders=TINY_SDXL.text_encoders)


def test_tokens_have_the_weight_of_their_letters(tokenizers):
    codec = tokenizers.each[0].codec
    prompt = "a (red:1.5)  Circle on [grey]"
    found = token_weights(codec, fragments(prompt), 77)
    counts = [len(codec(word, add_special_tokens=False).input_ids) for word in ("a", "red", "circle", "on", "grey")]
    expected = np.repeat([1, 1.5, 1, 1, 1 / 1.1], counts)
    np.testing.assert_allclose(found[1 : 1 + len(expected)], expected)
    assert (np.delete(found, np.arange(1, 1 + len(expected))) == 1).all()


def test_weights_of_long_prompts_follow_the_chunks(tokenizers):
    codec = tokenizers.each[0].codec
    prompt = "red " * 100 + "(blue:2)"
    found = token_weights(codec, fragments(prompt), 2 * 77)
    count = len(codec(plain(prompt), add_special_tokens=False).input_ids)
    last = 77 + 1 + count - 1 - 75
    assert (found[last], found[last + 1], found[77], found[0]) == (2, 1, 1, 1)


def test_each_encoder_keeps_its_own_mean_and_plain_prompts_are_not_touched(tokenizers):
    emphasis = Emphasis(tokenizers, (4, 6))
    context = states()
    np.testing.assert_array_equal(emphasis.apply("a red circle", context), context)
    found = emphasis.apply("a (red:1.5) circle", context)
    for part in (slice(0, 4), slice(4, 10)):
        np.testing.assert_allclose(found[:, part].mean(), context[:, part].mean(), rtol=1e-5)
        assert np.abs(found[:, part] - context[:, part]).max() > 0.1
