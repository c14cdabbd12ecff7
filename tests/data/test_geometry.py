import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gm.config import Config
from gm.data import transforms
from gm.data.geometry import Geometry
from gm.data.sample import PictureFile, Sample

CROPS = ("center", "random", "top", "corner")


def geometry(resolution, buckets, crop, flip, seed) -> Geometry:
    config = Config()
    config.data.resolution, config.data.buckets, config.data.crop = resolution, buckets, crop
    config.data.random_flip, config.train.seed = flip, seed
    return Geometry.of(config)


def geometries(*resolutions):
    of = (st.sampled_from(resolutions), st.booleans(), st.sampled_from(CROPS), st.booleans(), st.integers(0, 2**31))
    return st.builds(geometry, *of)


names = st.text(min_size=1, max_size=20)


def sample(name, height, width) -> Sample:
    return Sample(name, PictureFile(name), ("",), (height, width))


@given(geometries(64, 256, 512, 1024), names, st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 99))
def test_any_picture_is_framed_in_its_bucket_and_told_truly(rules, name, height, width, visit):
    one = sample(name, height, width)
    framing = rules.framing(one, visit)
    assert framing.target == rules.bucket(one)
    assert framing.target in rules.sizes
    away = [abs(np.log(h / w) - np.log(height / width)) for h, w in rules.sizes]
    assert away[rules.sizes.index(framing.target)] <= min(away) + 1e-8
    assert framing.time_ids().tolist() == [height, width, framing.top, framing.left, *framing.target]
    spare = [framing.resized[axis] - framing.target[axis] for axis in (0, 1)]
    assert min(spare) == 0  # it just covers
    assert 0 <= framing.top <= spare[0]
    assert 0 <= framing.left <= spare[1]
    expected = {
        "center": (spare[0] // 2, spare[1] // 2),
        "top": (0, spare[1] // 2),
        "corner": (0, 0),
        "random": (framing.top, framing.left),
    }
    assert (framing.top, framing.left) == expected[rules.crop]
    assert not (framing.flip and not rules.random_flip)
    assert rules.framing(one, visit) == framing


@given(geometries(64, 128), st.integers(8, 300), st.integers(8, 300), st.integers(0, 99))
def test_what_is_seen_lies_where_time_ids_say_mirrored_or_not(rules, height, width, visit):
    """Of a picture whose colours are its coordinates."""
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    ramp = np.stack(np.broadcast_arrays(rows[:, None], columns, 0.0), -1)
    picture = Image.fromarray(np.rint(ramp * 255).astype(np.uint8))
    framing = rules.framing(sample("a", height, width), visit)
    seen = (transforms.apply(picture, framing) + 1) / 2
    _, _, top, left, target_height, target_width = framing.time_ids()
    for axis, start, length, channel in ((0, top, target_height, 0), (1, left, target_width, 1)):
        whole, original = framing.resized[axis], (height, width)[axis]
        places = (start + np.arange(length) + 0.5) / whole  # in the resized, already mirrored picture
        inner = np.minimum(places, 1 - places) > 4 * max(1 / original, 1 / whole)  # the filter reaches over the edges
        expected = 1 - places if axis == 1 and framing.flip else places
        found = seen[channel].mean(axis=1 - axis)
        assert np.abs(found - expected)[inner].max(initial=0) < 1.5 / 255


def test_visits_are_framed_anew_and_names_apart():
    rules = geometry(64, False, "random", True, 42)
    framings = {rules.framing(sample(name, 64, 200), visit) for name in "ab" for visit in range(20)}
    assert len(framings) > 30
