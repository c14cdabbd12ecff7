"""Weights into networks and back, one tensor at a time, and never loosely."""

import math
from collections.abc import Iterable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from gm.errors import SuiteError
from gm.files import replacing
from gm.weights.ckpt import CkptWriter
from gm.weights.dtypes import FLOATS, NUMPY_TYPES, cast, is_finite, to_float32
from gm.weights.files import WeightFile, compare, named

TAGS = {
    ms.float64: "F64",
    ms.float32: "F32",
    ms.float16: "F16",
    ms.bfloat16: "BF16",
    ms.int64: "I64",
    ms.int32: "I32",
    ms.int16: "I16",
    ms.int8: "I8",
    ms.uint8: "U8",
    ms.bool_: "BOOL",
}


def load_into(cell: nn.Cell, weights: WeightFile, prefix: str = "") -> None:
    """Fill the parameters of ``cell``, whose names are original keys, from ``weights``, cast to each one's own type.

    ``prefix`` names the part of the file that must match the cell, key for key; with none it is what all names in the
    cell begin with (``model.diffusion_model.`` for a UNet). Keys outside it are not looked at. Memory stays at the
    parameters plus one tensor.

    Raises:
        SuiteError: missing, unexpected or misshapen keys, NaN or infinite values; nothing is loaded in the first case.
    """
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    prefix = prefix or common_prefix(list(parameters))
    parameters = {name: parameter for name, parameter in parameters.items() if name.startswith(prefix)}
    check_keys({name: tuple(parameter.shape) for name, parameter in parameters.items()}, weights, prefix)
    for name, parameter in parameters.items():
        if name in weights:
            parameter.set_data(as_tensor(weights, name, parameter.dtype))
            parameter.init_mode = None  # MindSpore copies a parameter from this where it is set, not from its data


def common_prefix(names: list[str]) -> str:
    """The whole dotted levels that all names share: ``a.b.`` for ``a.b.c`` and ``a.b.d``."""
    shared = []
    for level in zip(*(name.split(".")[:-1] for name in names)):
        if len(set(level)) > 1:
            break
        shared.append(level[0] + ".")
    return "".join(shared)


def check_keys(expected: dict[str, tuple[int, ...]], weights: WeightFile, prefix: str) -> None:
    """Compare keys and shapes under ``prefix``.

    Raises:
        SuiteError: they differ; one line with counts, the first few names, and what the file is instead.
    """
    given = {name: shape for name, shape in weights.shapes().items() if name.startswith(prefix)}
    found = compare(given, expected)
    misshapen = [f"{name} {given[name]} instead of {expected[name]}" for name in found.misshapen]
    faults = [
        f"{len(names)} {kind} ({named(names)})"
        for kind, names in (
            ("missing", found.missing),
            ("unexpected", found.unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if faults:
        only_lacks = given and not found.unexpected and not found.misshapen
        remedy = "fetch or save it again, whole" if only_lacks else "give one of the network's own kind"
        raise SuiteError(
            f"{weights.path} does not fit the network {prefix.rstrip('.') or 'as a whole'}: {'; '.join(faults)}. "
            f"The file is {weights.describe()}: {remedy}"
        )


def as_tensor(weights: WeightFile, name: str, dtype: ms.Type) -> Tensor:
    """One tensor of a file in a MindSpore type.

    Raises:
        SuiteError: NaN or infinite values, or values beyond the type.
    """
    array, tag = weights.read(name), weights.dtype(name)
    if not is_finite(array, tag):
        raise SuiteError(
            f"{weights.path}: {name} has NaN or infinite values: the model is broken, take an earlier checkpoint"
        )
    if tag in FLOATS:
        if dtype == ms.bfloat16:
            return Tensor(to_float32(array, tag), ms.bfloat16)
        try:
            array = cast(array, tag, TAGS[dtype])
        except SuiteError as error:
            raise SuiteError(f"{weights.path}: {name}: {error}") from None
    return Tensor(array, dtype)


def write_parameters(path: str | Path, parameters: nn.Cell | Iterable[Parameter], without: str = "") -> None:
    """Write parameters as a ``.ckpt`` in their own types, whole or not at all.

    Under their names, less the prefix ``without`` (``ema.`` makes an average a model).
    """
    if isinstance(parameters, nn.Cell):
        parameters = parameters.get_parameters()
    with replacing(path) as file:
        writer = CkptWriter(file)
        for parameter in parameters:
            tag = TAGS[parameter.dtype]
            # numpy has no bfloat16, so those come as bytes.
            values = parameter.get_bytes() if tag == "BF16" else parameter.asnumpy()
            if isinstance(values, np.ndarray):
                values = np.ascontiguousarray(values, NUMPY_TYPES[tag])
            writer.add(
                parameter.name.removeprefix(without),
                tuple(parameter.shape),
                tag,
                [values] if math.prod(parameter.shape) else [],
            )
