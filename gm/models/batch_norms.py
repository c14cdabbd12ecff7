"""Group and layer normalisation by batch normalisation, for devices where their own kernels are slow.

Batch normalisation of one picture (1, rows, n, 1) gives each of the rows mean 0 and variance 1. Its scale and shift are
by rows, too, so those of channels follow by themselves.
"""

from functools import cache

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P
from mindspore.ops.operations._grad_ops import BatchNormGrad


@ops.constexpr
def _zeros(count: int) -> Tensor:
    return Tensor(np.zeros(count, np.float32))


@ops.constexpr
def _ones(count: int) -> Tensor:
    return Tensor(np.ones(count, np.float32))


@ops.constexpr
def _averages(count: int) -> Tensor:
    """Where the operator keeps running averages, which nothing reads.

    They are tensors of their own: after a picture that is not finite they are not either. MindSpore may make one of
    tensors that are equal, so these equal no others.
    """
    return Tensor(np.full(count, 2.0, np.float32))


class _Standardize(nn.Cell):
    """Of a tensor of so many rows: a picture (1, rows, n, 1), each with mean 0 and variance 1; means, variances."""

    def __init__(self, eps: float):
        super().__init__()
        self.reshape = P.Reshape()
        # With another momentum its gradients are wrong.
        self.norm = P.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)
        # Running averages are not kept. As something with an effect on them the operator would be put in a chain
        # with all others of its kind, which takes long to compile.
        self.norm.add_prim_attr("side_effect_mem", False)
        self.norm.set_signatures(())

    def construct(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        running, picture = _averages(rows), self.reshape(x, (1, rows, -1, 1))
        standard, _, _, mean, variance = self.norm(picture, _ones(rows), _zeros(rows), running, running)
        return standard, mean, variance


class GroupNormByBatch(nn.Cell):
    """Group normalisation of pictures (B, C, H, W): each group a row, then scale and shift as of a batch."""

    def __init__(self, groups: int, eps: float):
        super().__init__()
        self.groups, self.reshape, self.standardize = groups, P.Reshape(), _Standardize(eps)
        self.affine = P.BatchNorm(is_training=False, epsilon=1e-12)
        self.affine.set_signatures(())

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        channels = x.shape[1]
        standard = self.reshape(self.standardize(x, x.shape[0] * self.groups)[0], x.shape)
        return self.affine(standard, weight, bias, _zeros(channels), _ones(channels))[0]


group_norm_by_batch = cache(GroupNormByBatch)


class LayerNormByBatch(nn.Cell):
    """Layer normalisation of (..., C) with its gradient: (result, what the backward pass is made of).

    The weight is repeated for each row: to multiply by what has to be spread takes longer and more memory.
    Sums over rows are ``ReduceSum``, which is fast over a first or last axis alone.
    """

    def __init__(self, eps: float):
        super().__init__()
        self.reshape, self.standardize, self.standardize_grad = P.Reshape(), _Standardize(eps), BatchNormGrad(True, eps)
        self.tile, self.mul, self.bias_add, self.sum = P.Tile(), P.Mul(), P.BiasAdd(), P.ReduceSum()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows, width = x.size // x.shape[-1], x.shape[-1]
        standard, mean, variance = self.standardize(x, rows)
        standard, weights = self.reshape(standard, (rows, width)), self.tile(weight, (rows, 1))
        result = self.bias_add(self.mul(standard, weights), bias)
        return self.reshape(result, x.shape), standard, mean, variance, weights

    def bprop(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, standard, mean, variance, weights = out
        gradient = self.reshape(gradients[0], standard.shape)
        picture, one = (1, standard.shape[0], -1, 1), _ones(standard.shape[0])
        by_standard = self.reshape(self.mul(gradient, weights), picture)
        by_x = self.standardize_grad(by_standard, self.reshape(x, picture), one, mean, variance, one)[0]
        return self.reshape(by_x, x.shape), self.sum(self.mul(gradient, standard), 0), self.sum(gradient, 0)


class LayerNormBySize(nn.Cell):
    """Layer normalisation of (..., C), alone in a tuple: of ``large`` numbers or more by batch normalisation."""

    def __init__(self, eps: float, large: int):
        super().__init__()
        self.large, self.by_batch = large, LayerNormByBatch(eps)
        self.norm = P.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        if x.size < self.large:
            return (self.norm(x, weight, bias)[0],)
        return (self.by_batch(x, weight, bias)[0],)


layer_norm_by_size = cache(LayerNormBySize)
