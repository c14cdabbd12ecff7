"""Tensors that wait in files: each knows its shape and format, and yields its values in bounded chunks."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gm.errors import SuiteError
from gm.weights import ckpt, safetensors_file
from gm.weights.ckpt import Entry
from gm.weights.dtypes import NUMPY_TYPES

CHUNK_BYTES = 2**20  # a chunk stays in the processor's cache between reading, checking, casting and writing


class TensorFile:
    """One open .safetensors or .ckpt file: ``entries`` by the names in the file."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115  (closed by close())
        try:
            self.format = sniff(self.file.fileno())
            if self.format == "safetensors":
                self.entries = safetensors_file.read_index(self.file, path)
            else:
                self.entries = ckpt.read_index(self.file)
        except SuiteError as error:
            self.close()
            raise SuiteError(f"{path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.file.close()

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``."""
        while len(target):
            count = os.preadv(self.file.fileno(), [target], offset)
            if not count:
                raise SuiteError(f"{self.path} ended while it was being read: something else is writing it")
            offset, target = offset + count, target[count:]


def sniff(descriptor: int) -> str:
    """The format of a file, "safetensors" or "ckpt", from its first bytes.

    Raises:
        SuiteError: it is something else that users often have; the message says what.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 64, 0)
    if not head:
        raise SuiteError("the file is empty: copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise SuiteError("this is a git-lfs pointer, not the weights: run git lfs pull, or download the file itself")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SuiteError("this is a web page, not weights: the download failed, try it again")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise SuiteError(
            "this is a torch pickle, which can run code when it is opened and is not read here: take the .safetensors "
            "of the same model"
        )
    if head[8:9] == b"{" or (size < 64 and not head.startswith(b"\x0a")):
        return "safetensors"
    return "ckpt"


@dataclass(frozen=True)
class FileSource:
    """A tensor as it lies in a file."""

    file: TensorFile
    entry: Entry
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    def stream(self) -> Iterator[np.ndarray]:
        """Flat chunks; one buffer is used again and again, so a chunk is valid until the next."""
        if not self.entry.nbytes:
            return
        buffer = np.empty(min(CHUNK_BYTES, max(size for _, size in self.entry.pieces)), np.uint8)
        for offset, size in self.entry.pieces:
            for begin in range(0, size, len(buffer)):
                chunk = buffer[: min(len(buffer), size - begin)]
                self.file.read_into(offset + begin, chunk.data)
                yield chunk.view(NUMPY_TYPES[self.dtype])

    def read(self) -> np.ndarray:
        array = np.empty(self.shape, NUMPY_TYPES[self.dtype])
        target = array.reshape(-1).view(np.uint8).data
        begin = 0
        for offset, size in self.entry.pieces:
            self.file.read_into(offset, target[begin : begin + size])
            begin += size
        return array


@dataclass(frozen=True)
class JoinedSource:
    """Several tensors one below the other (axis 0), as torch's MultiheadAttention keeps q, k and v."""

    parts: Sequence["Source"]

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def stream(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield from part.stream()

    def read(self) -> np.ndarray:
        return np.concatenate([part.read() for part in self.parts])


@dataclass(frozen=True)
class RowsSource:
    """Part ``index`` of ``count`` equal parts of a tensor's rows."""

    whole: "Source"
    index: int
    count: int

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.whole.shape[0] // self.count, *self.whole.shape[1:])

    def stream(self) -> Iterator[np.ndarray]:
        yield self.read().reshape(-1)

    def read(self) -> np.ndarray:
        rows = self.shape[0]
        return self.whole.read()[self.index * rows : (self.index + 1) * rows]


@dataclass(frozen=True)
class TransposedSource:
    """A matrix, transposed."""

    whole: "Source"

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[::-1]

    def stream(self) -> Iterator[np.ndarray]:
        yield self.read().reshape(-1)

    def read(self) -> np.ndarray:
        return np.ascontiguousarray(self.whole.read().T)


@dataclass(frozen=True)
class ReshapedSource:
    """The same values in the same order under another shape."""

    whole: "Source"
    shape: tuple[int, ...]

    def __post_init__(self):
        assert math.prod(self.shape) == math.prod(self.whole.shape)

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    def stream(self) -> Iterator[np.ndarray]:
        yield from self.whole.stream()

    def read(self) -> np.ndarray:
        return self.whole.read().reshape(self.shape)


@dataclass(frozen=True)
class ArraySource:
    """A tensor in memory."""

    array: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def stream(self) -> Iterator[np.ndarray]:
        yield np.ascontiguousarray(self.array).reshape(-1)

    def read(self) -> np.ndarray:
        return self.array


Source = FileSource | JoinedSource | RowsSource | TransposedSource | ReshapedSource | ArraySource
