"""Attention written out, in pieces: no more than a bounded part of the score matrix exists at once.

Where the whole matrix is small it is kept for the backward pass. Else the forward pass keeps nothing of the scores, and
the backward pass computes them again, piece by piece (Rabe and Staats 2021, arXiv 2112.05682). Softmax's gradient goes
by the row sums of Dao et al. 2022 (arXiv 2205.14135, appendix B.2).
"""

from functools import cache
from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from gm.models.layers import operand

MOST_SCORES = 2**24  # 64 MiB in float32; four such tensors live at once in the backward pass
KEPT_SCORES = 2**18  # 1 MiB in float32: as many at most are kept for the backward pass
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


@ops.constexpr
def _subtract(heads: int, keys: int) -> Tensor:
    return Tensor(np.full((heads, keys, 1), -1.0, np.float32))


@ops.constexpr
def _hidden(queries: int, keys: int) -> Tensor:
    return Tensor(np.triu(np.full((1, queries, keys), MASKED, np.float32), 1))


def heads_apart(x: Tensor, batch: int, heads: int) -> Tensor:
    """(B * N, H * D) -> (B * H, N, D), which are left as they are."""
    if len(x.shape) == 3:
        return x
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


class SmallAttention(nn.Cell):
    """``MathAttention`` in float32 at once, with few operators: those take longer to compile than scores to compute.

    Returns, beside the result, what the backward pass is made of.
    """

    def __init__(self, head_width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.scale = Tensor(head_width**-0.5, ms.float32)
        self.ones = Tensor(np.ones((head_width, 1), np.float32))
        self.mul, self.add, self.reshape = P.Mul(), P.Add(), P.Reshape()
        self.concat, self.softmax = P.Concat(-1), P.Softmax(-1)
        self.total, self.mix = P.MatMul(), P.BatchMatMul()
        self.scores, self.gather = P.BatchMatMul(transpose_b=True), P.BatchMatMul(transpose_a=True)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> tuple[Tensor, ...]:
        query = heads_apart(self.mul(query, self.scale), batch, heads)
        key, value = heads_apart(key, batch, heads), heads_apart(value, batch, heads)
        scores = self.scores(query, key)
        if self.causal:
            scores = self.add(scores, _hidden(query.shape[1], key.shape[1]))
        weights = self.softmax(scores)
        result = self.mix(weights, value)
        return heads_joined(result, batch, heads), result, weights, query, key, value

    def bprop(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: int,
        heads: int,
        out: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor, int, int]:
        apart = len(key.shape) == 3
        _, result, weights, query, key, value = out
        dout = heads_apart(gradients[0], batch, heads)
        maps, queries, width = dout.shape
        # As in AttentionInPieces.
        total = self.total(self.reshape(self.mul(result, dout), (maps * queries, width)), self.ones)
        slope = self.concat((dout, self.reshape(total, (maps, queries, 1))))
        dscores = self.mul(weights, self.scores(slope, self.concat((value, _subtract(maps, key.shape[1])))))
        dquery = self.mul(heads_joined(self.mix(dscores, key), batch, heads), self.scale)
        dkey, dvalue = self.gather(dscores, query), self.gather(weights, dout)
        if not apart:
            dkey, dvalue = heads_joined(dkey, batch, heads), heads_joined(dvalue, batch, heads)
        return dquery, dkey, dvalue, 0, 0


_small_attention = cache(SmallAttention)  # one for all layers alike: so they compile in half the time


class MathAttention(nn.Cell):
    """softmax(q k^T / sqrt(d)) v of each head: (B * N, H * D), (B * M, H * D), (B * M, H * D), B, H -> (B * N, H * D).

    Keys and values may be ``laid_out`` already: (B * H, M, D).
    At most ``most_scores`` elements of the score matrix at a time (one query's row, if that is more), in the gradient
    too. The products are in the type of what is given; softmax and its gradient are float32. ``causal`` masks what lies
    to the right of each query (text towers).
    """

    rounding: ms.Type | None = None

    def __init__(self, head_width: int, causal: bool = False, most_scores: int = MOST_SCORES):
        super().__init__()
        self.most_kept = min(KEPT_SCORES, most_scores)
        self.small = _small_attention(head_width, causal)
        self.large = AttentionInPieces(head_width, causal, most_scores)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        keys = key.shape[1] if len(key.shape) == 3 else key.shape[0] // batch
        scores = heads * query.shape[0] * keys
        if query.dtype == ms.float32 and self.rounding is None and scores <= self.most_kept:
            return self.small(query, key, value, batch, heads)[0]
        parts = heads_apart(query, batch, heads), heads_apart(key, batch, heads), heads_apart(value, batch, heads)
        return heads_joined(self.large(parts[0], parts[1], parts[2]), batch, heads)

    def laid_out(self, x: Tensor, batch: int, heads: int) -> Tensor:
        return heads_apart(x, batch, heads)


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
