import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.data.buckets import SDXL_SIZES, alignment, nearest, sizes

RESOLUTIONS = (64, 128, 192, 256, 512, 768, 1024, 2048)


def test_without_buckets_there_is_one_square():
    assert sizes(1024, buckets=False) == ((1024, 1024),)


def test_sdxl_sizes_are_those_of_its_paper():
    assert sizes(1024, buckets=True) == SDXL_SIZES
    assert len(set(SDXL_SIZES)) == 41
    assert all(side % 64 == 0 for size in SDXL_SIZES for side in size)
    assert all(0.87 <= height * width / 1024**2 <= 1.0 for height, width in SDXL_SIZES)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_sizes_are_aligned_and_of_the_configured_area(resolution):
    found = sizes(resolution, buckets=True)
    step = alignment(resolution)
    assert (resolution, resolution) in found
    assert len(found) > 1
    for height, width in found:
        assert height % step == width % step == 0
        assert height * width <= resolution**2
        assert min(height, width) * (max(height, width) + step) > resolution**2 or resolution == 1024


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from(RESOLUTIONS))
def test_no_other_size_has_a_nearer_ratio(height, width, resolution):
    choices = sizes(resolution, buckets=True)
    chosen = nearest((height, width), choices)
    away = {size: abs(math.log(size[0] / size[1]) - math.log(height / width)) for size in choices}
    assert chosen in choices
    assert away[chosen] <= min(away.values()) + 1e-8
    order = {size: (round(away[size], 9), -size[0] * size[1], choices.index(size)) for size in choices}
    assert chosen == min(choices, key=order.get)


@pytest.mark.parametrize("size", SDXL_SIZES)
def test_every_size_is_its_own_nearest(size):
    assert nearest(size, SDXL_SIZES) == size
