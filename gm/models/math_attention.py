"""Attention written out, in pieces: no more than a bounded part of the score matrix exists at once.

The forward pass keeps nothing of the scores, and the backward pass computes them again, piece by piece (Rabe and Staats
2021, arXiv 2112.05682). Softmax's gradient goes by the row sums of Dao et al. 2022 (arXiv 2205.14135, appendix B.2).
On the CPU a kernel of our own does the same in float32.
"""

from itertools import pairwise

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from gm.kernels.attention import attention
from gm.models.layers import operand, stands_in

MOST_SCORES = 2**24  # 64 MiB in float32; four such tensors live at once in the backward pass
MASKED = -1e4  # added to the scores of what is hidden: far below any score

Rows = tuple[tuple[int, int], ...]

_reshape, _transpose = P.Reshape(), P.Transpose()


def _spans(length: int, most: int) -> Rows:
    """(first, count) of the fewest nearly equal parts of at most ``most``."""
    parts = -(-length // max(1, most))
    edges = [length * index // parts for index in range(parts + 1)]
    return tuple((first, last - first) for first, last in pairwise(edges))


@ops.constexpr
def pieces(heads: int, queries: int, keys: int, most: int) -> tuple[tuple[int, int, Rows], ...]:
    """How to pass through (heads, queries, keys) scores, at most ``most`` at a time: (first head, heads, rows).

    ``rows`` are (first query, queries). Whole heads as long as one fits, else parts of one head; a single query's
    scores are the least.
    """
    rows = _spans(queries, most // keys)
    return tuple((first, count, rows) for first, count in _spans(heads, most // (queries * keys)))


def heads_apart(x: Tensor, batch: int, heads: int) -> Tensor:
    """(B * N, H * D) -> (B * H, N, D)."""
    width = x.shape[1] // heads
    if heads == 1:
        return _reshape(x, (batch, -1, width))
    x = _transpose(_reshape(x, (batch, -1, heads, width)), (0, 2, 1, 3))
    return _reshape(x, (batch * heads, -1, width))


def heads_joined(x: Tensor, batch: int, heads: int) -> Tensor:
    """(B * H, N, D) -> (B * N, H * D)."""
    width = x.shape[2]
    if heads > 1:
        x = _transpose(_reshape(x, (batch, heads, -1, width)), (0, 2, 1, 3))
    return _reshape(x, (-1, heads * width))


class MathAttention(nn.Cell):
    """softmax(q k^T / sqrt(d)) v of each head: (B * N, H * D), (B * M, H * D), (B * M, H * D), B, H -> (B * N, H * D).

    At most ``most_scores`` elements of the score matrix at a time (one query's row, if that is more), in the gradient
    too. The products are in the type of what is given; softmax and its gradient are float32. ``causal`` masks what lies
    to the right of each query (text towers).
    """

    rounding: ms.Type | None = None

    def __init__(self, head_width: int, causal: bool = False, most_scores: int = MOST_SCORES):
        super().__init__()
        self.kernel = attention(causal) if stands_in("attention") else None  # of float32; it holds fewer scores yet
        self.in_pieces = AttentionInPieces(head_width, causal, most_scores)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        if self.kernel is not None and query.dtype == ms.float32 and self.rounding is None:
            return self.kernel(query, key, value, batch, heads)
        parts = heads_apart(query, batch, heads), heads_apart(key, batch, heads), heads_apart(value, batch, heads)
        return heads_joined(self.in_pieces(parts[0], parts[1], parts[2]), batch, heads)


class AttentionInPieces(nn.Cell):
    """``MathAttention`` of any size and type, heads apart: (B*H, N, D), (B*H, M, D), (B*H, M, D) -> (B*H, N, D)."""

    rounding: ms.Type | None = None

    def __init__(self, head_width: int, causal: bool, most_scores: int):
        super().__init__()
        self.scale = head_width**-0.5
        self.causal = causal
        self.most_scores = most_scores
        self.scores = P.BatchMatMul(transpose_b=True)
        self.mix = P.BatchMatMul()
        self.gather = P.BatchMatMul(transpose_a=True)
        self.total = P.MatMul()
        self.softmax = P.Softmax(-1)
        self.slice = P.Slice()  # slicing with [] takes ten times as long in a graph on the CPU

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, queries, _ = query.shape
        keys = key.shape[1]
        query = query * self.scale
        outputs = ()
        done = query
        for head, count, rows in pieces(heads, queries, keys, self.most_scores):
            key_part, value_part = self.part(key, head, count, 0, keys), self.part(value, head, count, 0, keys)
            head_outputs = ()
            for first, length in rows:
                # One piece waits for the other: a graph is free to compute all scores first.
                query_part = ops.depend(self.part(query, head, count, first, length), done)
                weights = self.weights(query_part, key_part, first)
                done = self.mix(operand(weights, value.dtype, self.rounding), value_part)
                head_outputs = head_outputs + (done,)
            outputs = outputs + (self.join(head_outputs, 1),)
        return self.join(outputs, 0)

    def bprop(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = query.dtype
        heads, queries, width = query.shape
        keys = key.shape[1]
        # Softmax's gradient is weights * (d - t) with d = dout v^T and t = dout . out, one number per query. One more
        # column of the product subtracts it, a second one what rounding t took away: broadcasting over d costs four
        # times its memory on the CPU, kept for as long as the graph lives.
        products = (out.astype(ms.float32) * dout.astype(ms.float32)).reshape(heads * queries, width)
        total = self.total(products, ops.ones((width, 1), ms.float32)).reshape(heads, queries, 1)
        coarse = operand(total, dtype, self.rounding)
        dout = operand(dout, dtype, self.rounding)
        if dtype == ms.float32 and self.rounding is None:
            columns = 1
            slope = ops.concat((dout, coarse), axis=-1)
        else:
            columns = 2
            fine = operand(total - coarse.astype(ms.float32), dtype, self.rounding)
            slope = ops.concat((dout, coarse, fine), axis=-1)
        value = ops.concat((value, -ops.ones((heads, keys, columns), dtype)), axis=-1)

        query = query * self.scale
        dquery, dkey, dvalue = (), (), ()
        done = slope
        for head, count, rows in pieces(heads, queries, keys, self.most_scores):
            key_part, value_part = self.part(key, head, count, 0, keys), self.part(value, head, count, 0, keys)
            dquery_parts = ()
            dkey_part, dvalue_part = None, None
            for first, length in rows:
                query_part = ops.depend(self.part(query, head, count, first, length), done)
                slope_part = ops.depend(self.part(slope, head, count, first, length), done)
                weights = self.weights(query_part, key_part, first)
                dscores = weights * self.scores(slope_part, value_part).astype(ms.float32)
                dscores = operand(dscores, dtype, self.rounding)
                weights = operand(weights, dtype, self.rounding)
                dquery_part = self.mix(dscores, key_part)
                dquery_parts = dquery_parts + (dquery_part,)
                dkey_term = self.gather(dscores, query_part).astype(ms.float32)
                dvalue_term = self.gather(weights, self.part(dout, head, count, first, length)).astype(ms.float32)
                dkey_part = dkey_term if first == 0 else dkey_part + dkey_term
                dvalue_part = dvalue_term if first == 0 else dvalue_part + dvalue_term
                done = (dquery_part, dkey_part, dvalue_part)
            dquery = dquery + (self.join(dquery_parts, 1),)
            dkey, dvalue = dkey + (dkey_part.astype(dtype),), dvalue + (dvalue_part.astype(dtype),)
        return self.join(dquery, 0) * self.scale, self.join(dkey, 0), self.join(dvalue, 0)

    def weights(self, query: Tensor, key: Tensor, first: int) -> Tensor:
        """Softmax over the keys, float32, of queries already scaled; ``first`` is the number of the first of them."""
        scores = self.scores(query, key).astype(ms.float32)
        if self.causal:
            hidden = ops.triu(ops.ones(scores.shape[1:], ms.float32), first + 1)
            scores = scores + hidden.reshape((1,) + scores.shape[1:]) * MASKED
        return self.softmax(scores)

    def part(self, x: Tensor, head: int, heads: int, first: int, length: int) -> Tensor:
        if (heads, length) == x.shape[:2]:
            return x
        return self.slice(x, (head, first, 0), (heads, length, x.shape[2]))

    def join(self, parts: tuple[Tensor, ...], axis: int) -> Tensor:
        return parts[0] if len(parts) == 1 else ops.concat(parts, axis)
