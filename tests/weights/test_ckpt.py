"""Our .ckpt files and MindSpore's are the same format."""

import io
import stat

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor

from gm.errors import SuiteError
from gm.weights.ckpt import CkptWriter, read_index, save_ckpt
from gm.weights.dtypes import NUMPY_TYPES, to_float32
from gm.weights.files import open_weights


def test_mindspore_loads_what_we_write(tmp_path, every_format):
    path = tmp_path / "all.ckpt"
    save_ckpt(path, ((name, *rest) for name, rest in every_format.items()))
    loaded = ms.load_checkpoint(str(path))
    assert set(loaded) == set(every_format)
    for name, (shape, tag, array) in every_format.items():
        parameter = loaded[name]
        assert tuple(parameter.shape) == shape
        if tag == "BF16":
            assert parameter.dtype == ms.bfloat16
            np.testing.assert_array_equal(parameter.float().asnumpy(), to_float32(array, tag))
        else:
            np.testing.assert_array_equal(parameter.asnumpy(), array)
            assert parameter.asnumpy().dtype == array.dtype


def test_we_write_the_bytes_mindspore_writes(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "a.weight": Tensor(rng.normal(size=(4, 3)).astype(np.float32)),
        "b.weight": Tensor(rng.normal(size=(300,)).astype(np.float16)),
        "c.weight": Tensor(rng.normal(size=(2, 2)).astype(np.float32), ms.bfloat16),
        "d.scale": Tensor(np.float32(4.6)),
    }
    theirs, ours = tmp_path / "theirs.ckpt", tmp_path / "ours.ckpt"
    ms.save_checkpoint([{"name": name, "data": value} for name, value in values.items()], str(theirs))
    with open_weights(theirs) as weights:
        save_ckpt(ours, [(n, weights.shape(n), weights.dtype(n), weights.read(n)) for n in weights.names()])
    assert ours.read_bytes() == theirs.read_bytes()


def test_files_keep_normal_permissions(tmp_path, make_tensors, write_ckpt):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    path = write_ckpt(tmp_path / "a.ckpt", make_tensors({"x": (2,)}))
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_slices_of_one_tensor_are_joined(tmp_path, pieces):
    """As parameters above 512 MB are written; here the slice is 64 bytes. Pieces and slices need not line up."""
    array = np.arange(100, dtype=np.float32).reshape(4, 25)
    path = tmp_path / "sliced.ckpt"
    with open(path, "wb") as file:
        writer = CkptWriter(file, slice_bytes=64)
        writer.add("first", (3,), "F32", [np.ones(3, np.float32)])
        writer.add("big", array.shape, "F32", np.array_split(array.reshape(-1), pieces))
        writer.add("last", (), "F32", [np.float32(2).reshape(())])
    with open_weights(path) as weights:
        assert weights.names() == ["first", "big", "last"]
        np.testing.assert_array_equal(weights.read("big"), array)
        np.testing.assert_array_equal(np.concatenate(list(c.copy() for c in weights.stream("big"))), array.reshape(-1))
    np.testing.assert_array_equal(ms.load_checkpoint(str(path))["big"].asnumpy(), array)


def test_a_dimension_of_zero_alone_is_a_scalar_as_older_releases_wrote_it(tmp_path):
    body = b"\x0a\x01s\x12\x11\x08\x00\x12\x07Float32\x1a\x04" + np.float32(1.5).tobytes()
    path = tmp_path / "old.ckpt"
    path.write_bytes(b"\x0a" + bytes([len(body)]) + body)
    with open_weights(path) as weights:
        assert weights.shape("s") == ()
        assert weights.read("s") == np.float32(1.5)


def test_a_checksum_at_the_end_is_skipped(tmp_path, make_tensors, write_ckpt):
    path = write_ckpt(tmp_path / "crc.ckpt", make_tensors({"x": (2,)}))
    with open(path, "ab") as file:
        file.write(b"crc_num" + (123456).to_bytes(10, "big"))
    with open_weights(path) as weights:
        assert weights.names() == ["x"]


def test_every_truncation_is_told(tmp_path, make_tensors, write_ckpt):
    whole = write_ckpt(tmp_path / "whole.ckpt", make_tensors({"a.weight": (3, 4), "b.bias": ()})).read_bytes()
    boundary = len(whole) - len(whole.split(b"b.bias")[1]) - len(b"b.bias") - 4
    path = tmp_path / "cut.ckpt"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if length == boundary:  # between two records a file is whole, if short; loading it tells what is missing
            assert open_weights(path).names() == ["a.weight"]
            continue
        with pytest.raises(SuiteError, match="truncated") as error:
            open_weights(path)
        assert "\n" not in str(error.value)


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_at_all_lead_to_another_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.ckpt"
    path.write_bytes(content)
    try:
        with open(path, "rb") as file:
            read_index(file)
    except SuiteError as error:
        assert "\n" not in str(error)  # noqa: PT017  (an index, or one error in one line)


def test_a_parameter_twice_is_refused(tmp_path):
    path = tmp_path / "twice.ckpt"
    ones = np.ones(2, np.float32)
    save_ckpt(path, [("a", (2,), "F32", ones), ("b", (2,), "F32", ones), ("a", (2,), "F32", ones)])
    with pytest.raises(SuiteError, match="a occurs twice"):
        open_weights(path)


def test_contents_that_do_not_fill_the_shape_are_refused():
    writer = CkptWriter(io.BytesIO())
    with pytest.raises(ValueError, match="fewer"):
        writer.add("a", (3,), "F32", [np.ones(2, np.float32)])
    with pytest.raises(ValueError, match="more"):
        writer.add("b", (3,), "F32", [np.ones(4, np.float32)])


def test_opening_reads_no_contents(tmp_path):
    """A 3 GB file with holes opens at once, and a value at its end is where it should be."""
    path = tmp_path / "sparse.ckpt"
    count = 3 * 2**28
    head = io.BytesIO()
    size = count * NUMPY_TYPES["F32"].itemsize
    CkptWriter(head, slice_bytes=size)._head("big", (count,), "F32", size)
    with open(path, "wb") as file:
        file.write(head.getvalue())
        file.truncate(len(head.getvalue()) + size)
        file.seek(0, 2)
        CkptWriter(file).add("end", (1,), "F32", [np.float32([7])])
    with open_weights(path) as weights:
        assert weights.shape("big") == (count,)
        assert weights.read("end") == 7
