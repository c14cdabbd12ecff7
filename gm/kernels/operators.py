"""The kernels as operators of MindSpore."""

from collections.abc import Callable, Sequence
from functools import cache

import mindspore as ms
from mindspore import ops
from mindspore.ops import signature

from gm.kernels.library import library

Shapes = Callable[..., tuple[Sequence[int], ...] | Sequence[int]]


@cache
def operator(name: str, outputs: int, shapes: Shapes) -> ops.Custom:
    """The kernel ``name``; ``shapes`` takes the shapes of its inputs and returns that of its output, or of each."""
    types = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return ops.Custom(f"{library()}:{name}", shapes, lambda *inputs: types, "aot")


def updating(name: str, kinds: Sequence[bool]) -> ops.Custom:
    """The kernel ``name``, which changes those of its inputs that are Parameters (``kinds``), and returns a number.

    MindSpore keeps it in order with all else that reads or writes them.
    """
    found = ops.Custom(f"{library()}:{name}", lambda *shapes: (1,), lambda *inputs: ms.float32, "aot")
    found.add_prim_attr("side_effect_mem", True)
    write, read = signature.sig_rw.RW_WRITE, signature.sig_rw.RW_READ
    found.set_signatures(
        tuple(signature.make_sig(f"x{index}", write if changed else read) for index, changed in enumerate(kinds))
    )
    return found
