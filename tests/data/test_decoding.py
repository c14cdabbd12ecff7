import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gm.data import decoding, transforms
from gm.data.notes import hash_bytes
from gm.data.sample import PictureFile
from gm.errors import SuiteError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return decoding.Picture(
        "a.png", PictureFile(path), hash_bytes(path.read_bytes()), transforms.frame((40, 60), (32, 32))
    )


def test_pixels_are_those_of_decoding_in_place(picture):
    pixels = decoding.frame(picture)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    expected = transforms.decode(picture.file, picture.framing)
    np.testing.assert_array_equal(transforms.normalized(pixels), expected)
    np.testing.assert_array_equal(transforms.normalized(np.stack([pixels, pixels]))[1], expected)


def test_bytes_that_are_no_picture_are_a_reason_and_other_bytes_an_error(picture):
    content = picture.file.path.read_bytes()[:-100]
    picture.file.path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"picture a.png was changed while the program ran"):
        decoding.frame(picture)
    same = decoding.Picture(picture.id, picture.file, hash_bytes(content), picture.framing)
    assert decoding.frame(same).startswith("broken picture")
    picture.file.path.unlink()
    with pytest.raises(SuiteError, match=r"picture a.png cannot be read any more \(No such file"):
        decoding.frame(picture)


def test_few_pictures_are_worth_no_process():
    with decoding.Decoders(2, decoding.WORTH_PROCESSES - 1) as decoders:
        assert decoders.processes == []


def test_processes_give_the_same_pixels_reasons_and_errors(picture):
    expected = decoding.frame(picture)
    changed = dataclasses.replace(picture, content="another")
    with decoding.Decoders(2, decoding.WORTH_PROCESSES) as decoders:
        for pixels in decoders.threads.map(decoders.frame, [picture] * 5):
            np.testing.assert_array_equal(pixels, expected)
        with pytest.raises(SuiteError, match=r"picture a.png was changed while the program ran"):
            decoders.frame(changed)
        picture.file.path.write_bytes(b"no picture")
        broken = dataclasses.replace(picture, content=hash_bytes(b"no picture"))
        assert decoders.frame(broken) == "not a picture Pillow can read"
    assert [process.returncode for process in decoders.processes] == [0, 0]


def test_a_process_that_comes_to_a_sudden_end_is_told(picture):
    with decoding.Decoders(1, decoding.WORTH_PROCESSES) as decoders:
        decoders.frame(picture)
        decoders.processes[0].kill()
        with pytest.raises(SuiteError, match=r"came to a sudden end.*lower --num_parallel_workers"):
            decoders.frame(picture)


def test_decoding_needs_no_mindspore():
    program = "import sys; from gm.data import decoding; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
