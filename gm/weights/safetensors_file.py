"""The safetensors format as a stream: where each tensor lies, and a writer that never holds the model.

Eight bytes of header length (little-endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, then the contents,
without gaps (https://github.com/huggingface/safetensors). The library validates files; its numpy side can neither read
bfloat16 nor write piece by piece, so contents are read and written by offset here.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open

from gm.errors import SuiteError
from gm.weights.ckpt import Entry, Piece, as_bytes
from gm.weights.dtypes import NUMPY_TYPES

MAX_HEADER = 100_000_000  # the library's own limit


def read_index(file: IO[bytes], path: Path) -> dict[str, Entry]:
    """Where each tensor of an open safetensors file lies, in the order of the contents.

    Raises:
        SuiteError: truncated, wrong header, or a type that is not supported. The message does not name the file.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    if length > min(size - 8, MAX_HEADER):
        raise SuiteError(
            f"its header claims {length} bytes and the file has {size}: it is truncated or no safetensors file, "
            "download it again"
        )
    try:
        header = json.loads(os.pread(file.fileno(), length, 8))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        begin = 8 + length
        end = begin + max((value["data_offsets"][1] for value in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError):
        raise SuiteError("its header is damaged: download the file again") from None
    if size < end:
        raise SuiteError(f"it is truncated, {size} of {end} bytes: download it again")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise SuiteError(f"it is damaged ({error}): download it again") from None
    entries = {}
    for name, value in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        if value["dtype"] not in NUMPY_TYPES:
            raise SuiteError(f"{name} is {value['dtype']}, which is not supported: use a float32, 16 or bfloat16 file")
        first, last = value["data_offsets"]
        entries[name] = Entry(tuple(value["shape"]), value["dtype"], [(begin + first, last - first)])
    return entries


class SafetensorsWriter:
    """Writes a header for tensors known by (name, shape, dtype), then their contents in the order of ``self.names``.

    Wider types come first, so that each tensor is aligned to its own size.
    """

    def __init__(self, file: IO[bytes], tensors: Sequence[tuple[str, tuple[int, ...], str]]):
        self.file = file
        ordered = sorted(tensors, key=lambda tensor: -NUMPY_TYPES[tensor[2]].itemsize)
        self.names = [name for name, _, _ in ordered]
        # diffusers and transformers refuse a file that does not say which framework it is for.
        header: dict = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape, dtype in ordered:
            size = math.prod(shape) * NUMPY_TYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self._waiting = iter(ordered)

    def add(self, name: str, shape: tuple[int, ...], dtype: str, pieces: Iterable[Piece]) -> None:
        """Append the contents of one tensor.

        Raises:
            ValueError: not the tensor that is next, or the pieces do not add up to the shape.
        """
        if (name, shape, dtype) != next(self._waiting, None):
            raise ValueError(f"{name} is out of order")
        size, written = math.prod(shape) * NUMPY_TYPES[dtype].itemsize, 0
        for piece in pieces:
            view = as_bytes(piece)
            self.file.write(view)
            written += len(view)
        if written != size:
            raise ValueError(f"{name}: {written} bytes instead of {size}")
