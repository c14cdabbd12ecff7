"""Group normalisation by batch normalisation, for devices where its own kernel is slow."""

from functools import cache

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P


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


class GroupNormByBatch(nn.Cell):
    """Pictures (B, C, H, W), a weight and a bias (C,) -> (B, C, H, W).

    As a batch of one picture each group is a channel of its own, whose mean becomes 0 and variance 1; then scale and
    shift as of a batch that has been seen.
    """

    def __init__(self, groups: int, eps: float):
        super().__init__()
        self.groups, self.reshape = groups, P.Reshape()
        # With another momentum its gradients are wrong.
        self.standardize = P.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)
        # Running averages are not kept. As something with an effect on them the operator would be put in a chain
        # with all others of its kind, which takes long to compile.
        self.standardize.add_prim_attr("side_effect_mem", False)
        self.standardize.set_signatures(())
        self.affine = P.BatchNorm(is_training=False, epsilon=1e-12)
        self.affine.set_signatures(())

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, channels = x.shape[0] * self.groups, x.shape[1]
        running, picture = _averages(rows), self.reshape(x, (1, rows, -1, 1))
        standard = self.standardize(picture, _ones(rows), _zeros(rows), running, running)[0]
        return self.affine(self.reshape(standard, x.shape), weight, bias, _zeros(channels), _ones(channels))[0]


group_norm_by_batch = cache(GroupNormByBatch)
