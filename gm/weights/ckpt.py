"""MindSpore's ``.ckpt``: a plain sequence of protobuf records, read and written as a stream.

A file is a concatenation of ``Checkpoint{repeated Value value=1}`` messages (mindspore ``checkpoint.proto``)::

    Value{string tag=1; TensorProto tensor=2 | MapTensorProto maptensor=3}
    TensorProto{repeated int64 dims=1; string tensor_type=2; bytes tensor_content=3}

A tensor above 512 MB is several consecutive Values with the same tag and full dims. No dims, or a single 0, is a
scalar. Contents are little-endian, C order.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from gm.errors import SuiteError
from gm.files import replacing
from gm.weights.dtypes import NUMPY_TYPES

SLICE_BYTES = 512 * 2**20
Piece = bytes | memoryview | np.ndarray  # contiguous
HEAD_BYTES = 512  # enough for a record's fields before its content; longer names take a second read
CRC_TRAILER = b"crc_num"  # mindspore.save_checkpoint(crc_check=True) ends a file with this and ten bytes

TYPE_NAMES = {
    "F64": "Float64",
    "F32": "Float32",
    "F16": "Float16",
    "BF16": "BFloat16",
    "I64": "Int64",
    "I32": "Int32",
    "I16": "Int16",
    "I8": "Int8",
    "U64": "UInt64",
    "U32": "UInt32",
    "U16": "UInt16",
    "U8": "UInt8",
    "BOOL": "Bool",
}
TAGS = {name: tag for tag, name in TYPE_NAMES.items()}


@dataclass
class Entry:
    """Where a tensor lies in a file: ``pieces`` are (offset, bytes) in order."""

    shape: tuple[int, ...]
    dtype: str
    pieces: list[tuple[int, int]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.pieces)


class _MalformedError(Exception):
    """The bytes are not such records."""


class _TruncatedError(Exception):
    """The file ends inside a record."""


class _Cursor:
    """Reads protobuf fields of a file from ``position`` up to ``end``, by windows, without its contents."""

    def __init__(self, descriptor: int, size: int):
        self.descriptor, self.size = descriptor, size
        self.window, self.start = b"", 0

    def take(self, position: int, count: int) -> bytes:
        if position + count > self.size:
            raise _TruncatedError
        offset = position - self.start
        if offset < 0 or offset + count > len(self.window):
            self.window = os.pread(self.descriptor, max(HEAD_BYTES, count), position)
            self.start, offset = position, 0
        return self.window[offset : offset + count]

    def varint(self, position: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            byte = self.take(position, 1)[0]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise _MalformedError

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(field number, start, end) of length-delimited fields; (number, value, -1) of varint fields."""
        while position < end:
            key, position = self.varint(position)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, position = self.varint(position)
                yield number, value, -1
            elif wire == 2:
                length, position = self.varint(position)
                if position + length > self.size:
                    raise _TruncatedError
                if position + length > end:
                    raise _MalformedError
                yield number, position, position + length
                position += length
            else:
                raise _MalformedError


def _read_value(cursor: _Cursor, start: int, end: int) -> tuple[str, Entry]:
    name, tensor = None, None
    for number, first, last in cursor.fields(start, end):
        if number == 1 and last >= 0:
            name = cursor.take(first, last - first).decode("utf-8")
        elif number == 2 and last >= 0:
            tensor = first, last
        elif number == 3:
            raise SuiteError(f"parameter {name} is a map tensor, which no network here has")
    if not name or tensor is None:
        raise _MalformedError
    dims: list[int] = []
    dtype, piece = None, None
    for number, first, last in cursor.fields(*tensor):
        if number == 1 and last < 0:
            dims.append(first)
        elif number == 1:  # packed
            while first < last:
                dim, first = cursor.varint(first)
                dims.append(dim)
        elif number == 2:
            dtype = cursor.take(first, last - first).decode("utf-8")
        elif number == 3:
            piece = first, last - first
    if dtype is None or piece is None:
        raise _MalformedError
    if dtype not in TAGS:
        raise SuiteError(f"parameter {name} has type {dtype}, which is not supported: save it as Float32 or Float16")
    return name, Entry(() if dims == [0] else tuple(dims), TAGS[dtype], [piece])


def _check_size(name: str, entry: Entry) -> None:
    expected = NUMPY_TYPES[entry.dtype].itemsize
    for dim in entry.shape:
        expected *= dim
    if entry.nbytes != expected:
        raise SuiteError(
            f"parameter {name} of shape {entry.shape} has {entry.nbytes} bytes instead of {expected}: the file is "
            "broken, copy or convert it again"
        )


def read_index(file: IO[bytes]) -> dict[str, Entry]:
    """Where each parameter of an open .ckpt lies, in file order; seeks over contents, so it costs no memory.

    Raises:
        SuiteError: the file is truncated or no such file. The message does not name the file.
    """
    size = os.fstat(file.fileno()).st_size
    cursor = _Cursor(file.fileno(), size)
    entries: dict[str, Entry] = {}
    last_name, position = None, 0
    try:
        while position < size:
            if size - position == len(CRC_TRAILER) + 10 and cursor.take(position, 7) == CRC_TRAILER:
                break
            key, start = cursor.varint(position)
            if key != (1 << 3 | 2):
                raise _MalformedError
            length, start = cursor.varint(start)
            if start + length > size:
                raise _TruncatedError
            name, entry = _read_value(cursor, start, start + length)
            if name == last_name and name in entries and entries[name].shape == entry.shape:
                entries[name].pieces += entry.pieces
            elif name in entries:
                raise SuiteError(f"parameter {name} occurs twice: the file is broken, save it again")
            else:
                entries[name] = entry
            last_name, position = name, start + length
    except _TruncatedError:
        raise SuiteError(
            f"the file ends after {size} bytes in the middle of parameter {len(entries) + 1}: it is truncated, copy or "
            "download it again"
        ) from None
    except (_MalformedError, UnicodeDecodeError):
        raise SuiteError("this is not a MindSpore .ckpt: give a .ckpt, a .safetensors or a diffusers folder") from None
    for name, entry in entries.items():
        _check_size(name, entry)
    if not entries:
        raise SuiteError("the file is empty: copy or download it again")
    return entries


def as_bytes(piece: Piece) -> memoryview:
    """The bytes of a contiguous buffer, without a copy."""
    if isinstance(piece, np.ndarray):
        piece = piece.reshape(-1).view(np.uint8).data
    return memoryview(piece).cast("B")


def varint(number: int) -> bytes:
    """``number`` as a protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


class CkptWriter:
    """Writes parameters one after the other; contents come in pieces of any size.

    Example::

        with replacing(path) as file:
            writer = CkptWriter(file)
            writer.add("a.weight", (2, 3), "F32", [array.data])
    """

    def __init__(self, file: IO[bytes], slice_bytes: int = SLICE_BYTES):
        self.file, self.slice_bytes = file, slice_bytes

    def add(self, name: str, shape: tuple[int, ...], dtype: str, pieces: Iterable[Piece]) -> None:
        """Append one parameter.

        Raises:
            SuiteError: a .ckpt has no such type.
            ValueError: the pieces do not add up to the shape.
        """
        if dtype not in TYPE_NAMES:
            raise SuiteError(f"{name} is {dtype}, which a .ckpt cannot hold")
        total = NUMPY_TYPES[dtype].itemsize
        for dim in shape:
            total *= dim
        remaining, room = total, 0
        for piece in pieces:
            view = as_bytes(piece)
            if len(view) > remaining:
                raise ValueError(f"{name}: more bytes than shape {shape} holds")
            while len(view):
                if not room:
                    room = min(remaining, self.slice_bytes)
                    self._head(name, shape, dtype, room)
                written = view[:room]
                self.file.write(written)
                view, room, remaining = view[len(written) :], room - len(written), remaining - len(written)
        if remaining:
            raise ValueError(f"{name}: {remaining} bytes fewer than shape {shape} holds")
        if not total:
            self._head(name, shape, dtype, 0)

    def _head(self, name: str, shape: tuple[int, ...], dtype: str, content: int) -> None:
        dims = b"".join(b"\x08" + varint(dim) for dim in shape)
        tensor = dims + _delimited(2, TYPE_NAMES[dtype].encode()) + b"\x1a" + varint(content)
        size = len(tensor) + content
        value = _delimited(1, name.encode()) + b"\x12" + varint(size)
        self.file.write(b"\x0a" + varint(len(value) + size) + value + tensor)


def save_ckpt(path: str | Path, tensors: Iterable[tuple[str, tuple[int, ...], str, Piece]]) -> None:
    """Write (name, shape, format tag, values) as a ``.ckpt``, whole or not at all."""
    with replacing(path) as file:
        writer = CkptWriter(file)
        for name, shape, tag, values in tensors:
            writer.add(name, shape, tag, [values])
