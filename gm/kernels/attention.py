"""Attention by a kernel of our own, and its gradient."""

from functools import cache

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.kernels.operators import operator


def _like_query(query, *rest):
    return query


def _like_all(dout, query, key, value, sizes):
    return query, key, value


@ops.constexpr
def _sizes(batch: int, heads: int, causal: bool) -> Tensor:
    return Tensor([batch, heads, causal], ms.float32)


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(d)) v of each head: (B * N, H * D), (B * M, H * D), (B * M, H * D), B, H -> (B * N, H * D).

    ``causal`` hides from each query the keys behind its own place.
    """

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal
        self.forward = operator("attention", 1, _like_query)
        self.backward = operator("attention_grad", 3, _like_all)

    def construct(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        return self.forward(query, key, value, _sizes(batch, heads, self.causal))

    def bprop(
        self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int, out: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int, int]:
        slopes = self.backward(gradient, query, key, value, _sizes(batch, heads, self.causal))
        return slopes[0], slopes[1], slopes[2], 0, 0


attention = cache(Attention)
