"""What a transformer block computes, with its weights as arguments.

SDXL's UNet has 70 transformer blocks of two kinds. As Cells with weights of their own each is parsed, typed and
differentiated by itself. One Cell for all that are alike is so once, which on the CPU saves much of the time and some
of the memory of a first step (``tools/benchmark/training_step.py --without transformer_block``). On Ascend MindSpore's
``lazy_inline`` does it, see ``gm.models.repeated``.
"""

from functools import cache

from mindspore import Tensor, nn
from mindspore.ops import operations as P

from gm.models.attention import Choice, MultiHeadAttention
from gm.models.layers import GatedGELU, LayerNorm, row_norm


class SharedBlock(nn.Cell):
    """``gm.models.unet.TransformerBlock`` in float32, without Parameters.

    ``construct``: states (B, N, C), context (B, M, context), then weights in the order of the block's arithmetic: of
    self-attention norm, its bias, queries, keys, values, output, its bias; the same of cross-attention; of the
    feed-forward norm, its bias, gated projection, its bias, output, its bias.
    """

    def __init__(self, heads: int, head_width: int):
        super().__init__()
        self.norm = row_norm(LayerNorm.eps)
        self.matmul, self.bias_add = P.MatMul(transpose_b=True), P.BiasAdd()
        self.attention, self.gate = MultiHeadAttention(heads, head_width), GatedGELU()

    def construct(
        self,
        x: Tensor,
        context: Tensor,
        norm1: Tensor,
        norm1_bias: Tensor,
        query1: Tensor,
        key1: Tensor,
        value1: Tensor,
        out1: Tensor,
        out1_bias: Tensor,
        norm2: Tensor,
        norm2_bias: Tensor,
        query2: Tensor,
        key2: Tensor,
        value2: Tensor,
        out2: Tensor,
        out2_bias: Tensor,
        norm3: Tensor,
        norm3_bias: Tensor,
        gated: Tensor,
        gated_bias: Tensor,
        out3: Tensor,
        out3_bias: Tensor,
    ) -> Tensor:
        batch, rows = x.shape[0], x.reshape(-1, x.shape[2])
        context = context.reshape(-1, context.shape[2])
        normed = self.norm(rows, norm1, norm1_bias)[0]
        key, value = self.matmul(normed, key1), self.matmul(normed, value1)
        attended = self.attention(self.matmul(normed, query1), key, value, batch)
        rows = rows + self.bias_add(self.matmul(attended, out1), out1_bias)
        normed = self.norm(rows, norm2, norm2_bias)[0]
        key, value = self.matmul(context, key2), self.matmul(context, value2)
        attended = self.attention(self.matmul(normed, query2), key, value, batch)
        rows = rows + self.bias_add(self.matmul(attended, out2), out2_bias)
        normed = self.norm(rows, norm3, norm3_bias)[0]
        hidden = self.gate(self.bias_add(self.matmul(normed, gated), gated_bias))
        return (rows + self.bias_add(self.matmul(hidden, out3), out3_bias)).reshape(x.shape)


@cache
def _shared_block(heads: int, head_width: int, flash: bool) -> SharedBlock:
    return SharedBlock(heads, head_width)


def shared_block(heads: int, head_width: int) -> SharedBlock:
    """The one of all blocks alike."""
    return _shared_block(heads, head_width, Choice.flash)
