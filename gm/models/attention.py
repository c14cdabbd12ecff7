"""The one door to attention: every network asks here, and the implementation is chosen per device."""

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from gm.models.layers import Linear, operand

CHUNK_SCORES = 2**25  # scores held at once by the plain formulation: 128 MiB in float32
MASKED = -1e4  # added to the scores of what is hidden: far below any score, and still a number in float16


class MathAttention(nn.Cell):
    """softmax(q k^T / sqrt(d)) v on (B*H, N, D) tensors, ``CHUNK_SCORES`` score elements at a time.

    ``causal`` masks what lies to the right of each query (text towers). The softmax is float32 whatever the rest is.
    """

    rounding: ms.Type | None = None

    def __init__(self, head_width: int, causal: bool = False):
        super().__init__()
        self.scale = head_width**-0.5
        self.causal = causal
        self.scores = P.BatchMatMul(transpose_b=True)
        self.mix = P.BatchMatMul()
        self.softmax = P.Softmax(-1)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, queries, _ = query.shape
        keys = key.shape[1]
        query = query * self.scale
        rows = max(1, CHUNK_SCORES // (batch * keys))
        if self.causal or rows >= queries:
            return self.attend(query, key, value)
        parts = ()
        for start in range(0, queries, rows):
            stop = min(start + rows, queries)
            parts = parts + (self.attend(query[:, start:stop], key, value),)
        return ops.concat(parts, axis=1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = self.scores(query, key).astype(ms.float32)
        if self.causal:
            length = scores.shape[-1]
            hidden = ops.triu(ops.ones((length, length), scores.dtype), 1)
            scores = scores + hidden.reshape(1, length, length) * MASKED
        return self.mix(operand(self.softmax(scores), value.dtype, self.rounding), value)


class MultiHeadAttention(nn.Cell):
    """Split heads, attend, join heads: (B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""

    def __init__(self, heads: int, head_width: int, causal: bool = False):
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.attention = MathAttention(head_width, causal)

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, length, channels = query.shape
        out = self.attention(self.split(query), self.split(key), self.split(value))
        if self.heads == 1:
            return out
        out = out.reshape(batch, self.heads, length, self.head_width)
        return out.transpose(0, 2, 1, 3).reshape(batch, length, channels)

    def split(self, x: Tensor) -> Tensor:
        if self.heads == 1:
            return x
        batch, length, _ = x.shape
        x = x.reshape(batch, length, self.heads, self.head_width).transpose(0, 2, 1, 3)
        return x.reshape(batch * self.heads, length, self.head_width)


class CrossAttention(nn.Cell):
    """Attention of a transformer block; with no context it attends to itself. Names as in the original UNet."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = nn.CellList([Linear(channels, channels)])
        self.attention = MultiHeadAttention(heads, channels // heads)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out[0](self.attention(self.to_q(x), self.to_k(context), self.to_v(context)))
