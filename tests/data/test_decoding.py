import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from gm.data import decoding, transforms
from gm.data.notes import hash_bytes, hash_file
from gm.errors import SuiteError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return decoding.Picture("a.png", path, hash_file(path), transforms.frame((40, 60), (32, 32)))


def test_pixels_are_those_of_decoding_in_place(picture):
    pixels = decoding.frame(picture)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    expected = transforms.decode(picture.path, picture.framing)
    np.testing.assert_array_equal(transforms.normalized(pixels), expected)
    np.testing.assert_array_equal(transforms.normalized(np.stack([pixels, pixels]))[1], expected)


def test_bytes_that_are_no_picture_are_a_reason_and_other_bytes_an_error(picture):
    content = picture.path.read_bytes()[:-100]
    picture.path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"picture a.png was changed while the program ran"):
        decoding.frame(picture)
    same = decoding.Picture(picture.id, picture.path, hash_bytes(content), picture.framing)
    assert decoding.frame(same).startswith("broken picture")
    picture.path.unlink()
    with pytest.raises(SuiteError, match=r"picture a.png cannot be read any more \(No such file"):
        decoding.frame(picture)


def test_few_pictures_are_worth_no_process():
    with decoding.pool(2, decoding.WORTH_PROCESSES - 1) as pool:
        assert isinstance(pool, ThreadPoolExecutor)


def test_processes_decode_without_mindspore_and_their_sudden_end_is_told(picture):
    with decoding.pool(1, decoding.WORTH_PROCESSES) as pool:
        np.testing.assert_array_equal(pool.submit(decoding.frame, picture).result(), decoding.frame(picture))
        assert pool.submit(eval, "__import__('os').getpid()").result() != os.getpid()
        assert not pool.submit(eval, "'mindspore' in __import__('sys').modules").result()
    with (
        pytest.raises(SuiteError, match=r"came to a sudden end.*lower --num_parallel_workers"),
        decoding.pool(1, decoding.WORTH_PROCESSES) as pool,
    ):
        pool.submit(os._exit, 1).result()
