"""Convolution by a kernel of our own, and its gradients."""

from functools import cache

from mindspore import Tensor, nn

from gm.kernels.operators import operator


def _made(x, weight, bias):
    return [x[0], weight[0], x[2], x[3]]


def _taken(dy, weight):
    return [dy[0], weight[1], dy[2], dy[3]]


def _of_kernels(dy, x, weight):
    return weight, [weight[0]]


class Convolution(nn.Cell):
    """x (B, C, H, W), weight (out, C, k, k) with odd k, bias (out,) -> (B, out, H, W): padded to the same size."""

    def __init__(self):
        super().__init__()
        self.forward = operator("convolution", 1, _made)
        self.by_input = operator("convolution_grad_input", 1, _taken)
        self.by_kernels = operator("convolution_grad_kernels", 2, _of_kernels)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, weight, bias)

    def bprop(
        self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Two kernels: nobody asks for the gradient of what the first layer of a network takes.
        slopes = self.by_kernels(gradient, x, weight)
        return self.by_input(gradient, weight), slopes[0], slopes[1]


convolution = cache(Convolution)
