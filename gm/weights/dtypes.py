"""Number formats of weight files: their tags, and casts between them without torch.

Tags are those of safetensors ("F32", "BF16", ...). bfloat16 has no numpy type: its arrays here are uint16 bits.
"""

import numpy as np

from gm.errors import SuiteError

NUMPY_TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the bits
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
FLAG_TAGS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "keep": None}  # values of --dtype

_SLICE = 2**14  # values at a time where there are intermediate ones, which then stay in the processor's cache

# Per float format: the unsigned type of its bits, all bits but the sign, and the bits of infinity.
_BITS = {
    "F64": (np.dtype("<u8"), 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (np.dtype("<u4"), 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7FFF, 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7FFF, 0x7F80),
}


def target_tag(tag: str, wanted: str | None) -> str:
    """The format a tensor is written in: ``wanted`` for floats, its own for integers or when None is wanted."""
    return wanted if wanted and tag in FLOATS else tag


def is_finite(array: np.ndarray, tag: str) -> bool:
    """Whether no value is NaN or infinite; compares bits, which runs at memory speed in every format."""
    if tag not in FLOATS or array.size == 0:
        return True
    bits, magnitude, infinity = _BITS[tag]
    values = array.reshape(-1).view(bits)
    slices = (values[begin : begin + _SLICE] for begin in range(0, values.size, _SLICE))
    return all(int(np.bitwise_and(part, bits.type(magnitude)).max()) < infinity for part in slices)


# Every float16 as float32. numpy widens one value at a time; looking it up is three times as fast.
_WIDENED = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _widen_float16(array: np.ndarray) -> np.ndarray:
    indices = np.ascontiguousarray(array).reshape(-1).view(np.uint16)
    result = np.empty(indices.size, np.float32)
    for begin in range(0, indices.size, _SLICE):
        part = slice(begin, begin + _SLICE)
        np.take(_WIDENED, indices[part], out=result[part], mode="clip")  # "raise" would copy through a buffer
    return result.reshape(array.shape)


def to_float32(array: np.ndarray, tag: str) -> np.ndarray:
    """Any float format as float32; float16 and bfloat16 widen exactly."""
    if tag == "BF16":
        return np.asarray(array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if tag == "F16":
        return _widen_float16(array)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def float32_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even, as torch rounds; finite input only."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).reshape(array.shape)


def cast(array: np.ndarray, tag: str, wanted: str) -> np.ndarray:
    """``array`` in format ``wanted``.

    Raises:
        SuiteError: a finite value does not fit the narrower format.
    """
    if tag == wanted:
        return array
    values = to_float32(array, tag)
    if wanted == "BF16":
        result = float32_to_bfloat16(values)
    else:
        with np.errstate(over="ignore"):
            result = values.astype(NUMPY_TYPES[wanted])
    if wanted in ("F16", "BF16") and not is_finite(result, wanted):
        largest = float(np.abs(values).max())
        name = "float16 (at most 65504)" if wanted == "F16" else "bfloat16"
        raise SuiteError(f"value {largest:g} does not fit {name}: choose --dtype keep or another format")
    return result
