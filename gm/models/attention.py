"""The one door to attention: every network asks here, and one implementation answers for the run (``choose``).

Flash attention is a kernel of Ascend's; ``MathAttention`` computes the same on every device, in pieces.
"""

import logging

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.models.layers import Linear, Projection
from gm.models.math_attention import MathAttention

log = logging.getLogger(__name__)


class Choice:
    """What networks built from now on ask for where flash attention can be had; see ``choose``."""

    flash = False


def choose(wanted: str, target: str, precision: str) -> None:
    """Settle the implementation for the networks built after this, and say which and why.

    Args:
        wanted: ``model.attention``: "auto", "flash" or "math".
        target: the device, "Ascend" or "CPU".
        precision: ``launch.precision``; flash attention takes half precision only.
    """
    reason = ""
    if wanted == "math":
        reason = "as asked for"
    elif target != "Ascend":
        reason = f"flash attention is a kernel of Ascend's, and this is the {target}"
    elif precision == "fp32":
        reason = "flash attention takes float16 and bfloat16, and --precision is fp32"
    Choice.flash = not reason
    if Choice.flash:
        log.info("attention: flash; math, in pieces, where a layer is of a shape or type it does not take")
    else:
        log.log(logging.WARNING if wanted == "flash" else logging.INFO, "attention: math, in pieces: %s", reason)


def flash_takes(query: Tensor, key: Tensor, value: Tensor, heads: int) -> bool:
    """Whether (B, N, C), (B, M, C), (B, M, C) are within what ``ops.flash_attention_score`` documents (2.8 to 2.10)."""
    batch, queries, channels = query.shape
    keys = key.shape[1]
    width = channels // heads
    half = query.dtype == ms.float16 or query.dtype == ms.bfloat16
    alike = query.dtype == key.dtype and query.dtype == value.dtype
    shaped = width % 16 == 0 and width <= 512 and heads <= 256 and batch <= 2048
    return half and alike and shaped and queries <= 512 * 1024 and keys <= 512 * 1024


def flash_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """(B, N, C), (B, M, C), (B, M, C) -> (B, N, C) by Ascend's kernel; ``flash_takes`` must hold.

    Layout BSH, no dropout; in the mask of ``sparse_mode`` 0, (N, M), True is what a query does not see.
    """
    queries, keys = query.shape[1], key.shape[1]
    mask = None
    if causal:
        mask = ops.arange(keys).reshape(1, keys) > ops.arange(queries).reshape(queries, 1)
    scale = (query.shape[2] // heads) ** -0.5
    return ops.flash_attention_score(
        query, key, value, heads, attn_mask=mask, scalar_value=scale, input_layout="BSH", sparse_mode=0
    )


class FlashAttention(nn.Cell):
    """``MultiHeadAttention`` by the device's kernel, where it takes what is given."""

    def __init__(self, head_width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.math = MathAttention(head_width, causal)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        shape = (batch, -1, query.shape[1])
        parts = query.reshape(shape), key.reshape(shape), value.reshape(shape)
        if flash_takes(parts[0], parts[1], parts[2], heads):
            return flash_attention(parts[0], parts[1], parts[2], heads, self.causal).reshape(query.shape)
        return self.math(query, key, value, batch, heads)


class MultiHeadAttention(nn.Cell):
    """Attention of ``heads`` heads side by side: (B * N, C), (B * M, C), (B * M, C) and B -> (B * N, C).

    ``causal``: no query sees what lies to the right of it.
    """

    def __init__(self, heads: int, head_width: int, causal: bool = False):
        super().__init__()
        self.heads = heads
        self.attention = (FlashAttention if Choice.flash else MathAttention)(head_width, causal)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int) -> Tensor:
        return self.attention(query, key, value, batch, self.heads)


class CrossAttention(nn.Cell):
    """Attention of a transformer block, of rows (B * N, C) to rows (B * M, context); names as in the original UNet.

    In place of a context its ``states`` will do.
    """

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.to_q = Projection(channels, channels)
        self.to_k = Projection(context_dim, channels)
        self.to_v = Projection(context_dim, channels)
        self.to_out = nn.CellList([Linear(channels, channels)])
        self.attention = MultiHeadAttention(heads, channels // heads)

    def construct(self, x: Tensor, context: Tensor | tuple[Tensor, Tensor], batch: int) -> Tensor:
        key, value = context if isinstance(context, tuple) else self.states(context)
        return self.to_out[0](self.attention(self.to_q(x), key, value, batch))

    def states(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows."""
        return self.to_k(context), self.to_v(context)
