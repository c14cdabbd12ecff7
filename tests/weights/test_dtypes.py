"""Casts are those of torch and IEEE 754."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.errors import SuiteError
from gm.weights.dtypes import cast, float32_to_bfloat16, is_finite, target_tag, to_float32


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("tag", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("wanted", ["F64", "F32", "F16", "BF16"])
def test_casts_keep_the_shape_and_what_fits(shape, tag, wanted):
    ones = cast(np.full(shape, 1.5, np.float32), "F32", tag)
    result = cast(ones, tag, wanted)
    assert result.shape == shape
    assert (to_float32(result, wanted) == 1.5).all()


def test_float64_loses_nothing_to_float64():
    third = np.array([1 / 3])
    assert cast(third, "F64", "F64")[0] == 1 / 3


@given(st.integers(0, 0xFFFF))
def test_bfloat16_survives_the_way_through_float32(bits):
    if (bits & 0x7F80) == 0x7F80:  # NaN and infinity
        return
    array = np.array([bits], np.uint16)
    assert float32_to_bfloat16(to_float32(array, "BF16"))[0] == bits


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_the_nearest_even(value):
    bits = float32_to_bfloat16(np.array([value], np.float32))
    if not is_finite(bits, "BF16"):
        return
    rounded = float(to_float32(bits, "BF16")[0])
    for step in (-1, 1):
        neighbour = float(to_float32(np.array([(int(bits[0]) + step) & 0xFFFF], np.uint16), "BF16")[0])
        if np.isfinite(neighbour) and np.sign(neighbour) == np.sign(rounded):
            assert abs(value - rounded) <= abs(value - neighbour)
            if abs(value - rounded) == abs(value - neighbour):
                assert bits[0] % 2 == 0


@pytest.mark.parametrize("tag", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_found_in_every_format(tag, bad):
    values = np.ones(1000, np.float32)
    if tag == "BF16":
        array = (values.view(np.uint32) >> 16).astype(np.uint16)
        array_bad = array.copy()
        array_bad[617] = np.float32(bad).view(np.uint32) >> 16
    else:
        array = values.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[tag])
        array_bad = array.copy()
        array_bad[617] = bad
    assert is_finite(array, tag)
    assert not is_finite(array_bad, tag)


def test_the_largest_values_are_finite():
    assert is_finite(np.array([np.finfo(np.float16).max, -np.finfo(np.float16).max]), "F16")
    assert is_finite(np.array([np.finfo(np.float32).max]), "F32")


def test_a_value_beyond_float16_is_told_not_made_infinite():
    with pytest.raises(SuiteError, match="70000 does not fit float16"):
        cast(np.array([1.0, 70000.0], np.float32), "F32", "F16")
    assert is_finite(cast(np.array([70000.0], np.float32), "F32", "BF16"), "BF16")


def test_integers_keep_their_format():
    assert target_tag("I64", "F16") == "I64"
    assert target_tag("F32", "F16") == "F16"
    assert target_tag("BF16", None) == "BF16"


@pytest.mark.reference
def test_equal_to_torch():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=10000).astype(np.float32) * 10.0 ** np.arange(-5, 5).repeat(1000)
    values = values.astype(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(float32_to_bfloat16(values), theirs)
