import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.sampling.emphasis import emphasise, fragments


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


def test_a_weight_scales_its_tokens_and_the_mean_of_each_encoder_stays():
    weights = np.ones(77)
    weights[3] = 1.5
    context = states()
    found = emphasise(context, weights, (4, 6))
    for part in (slice(0, 4), slice(4, 10)):
        ratio = found[:, part] / context[:, part]
        np.testing.assert_allclose(ratio[3] / ratio[0], 1.5, rtol=1e-5)
        np.testing.assert_allclose(found[:, part].mean(), context[:, part].mean(), rtol=1e-5)


def test_weights_of_one_change_nothing():
    np.testing.assert_array_equal(emphasise(states(), np.ones(77), (4, 6)), states())
