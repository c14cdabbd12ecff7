"""The numbers a network computes in (``--precision``) and the numbers its weights are kept in (``--param_fp16``).

Layers that are not all float32 compute in the type of what they are given and cast their weights to it, so a network's
arithmetic is the type it casts its input to. Norms and softmax are float32 whatever the rest is, as under torch's
autocast and MindSpore's O2.
"""

import logging

import mindspore as ms
from mindspore import nn

from gm.models.layers import GroupNorm, LayerNorm, generalize

DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}

log = logging.getLogger(__name__)


def set_precision(network: nn.Cell, precision: str, param_fp16: bool) -> None:
    """Both of it at once; before the weights are loaded, so that they are cast one by one."""
    if param_fp16:
        keep_in_half(network)
    compute_in(network, precision)


def compute_in(network: nn.Cell, precision: str, target: str | None = None) -> None:
    """Make ``network``, which has a ``dtype``, compute in ``precision``; what it takes and returns stays as it is.

    The CPU has no bfloat16 arithmetic. There (``target``, by default this process's device) the factors and results of
    every matrix product and convolution are rounded to bfloat16, forward and backward, and computed with in float32:
    the operands of the Ascend kernels, which accumulate in float32 too.
    """
    dtype, rounding = DTYPES[precision], None
    if precision == "bf16" and (target or ms.get_context("device_target")) == "CPU":
        dtype, rounding = ms.float32, ms.bfloat16
        log.info("the CPU has no bfloat16 arithmetic: operands are rounded to bfloat16 and computed with in float32")
    network.dtype = dtype
    if precision != "fp32":
        generalize(network)
    for _, cell in network.cells_and_names():
        if hasattr(cell, "rounding"):
            cell.rounding = rounding


def keep_in_half(network: nn.Cell) -> None:
    """Keep the weights in float16, but for those of norms, which are small and work in float32."""
    generalize(network)
    for _, cell in network.cells_and_names():
        if not isinstance(cell, (GroupNorm, LayerNorm)):
            for parameter in cell.get_parameters(expand=False):
                parameter.set_dtype(ms.float16)
