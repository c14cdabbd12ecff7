"""Many tensors in few: gradients are exchanged, and state is shared out, in flat pieces of about one size."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from gm.parallel.shards import Bucket

_map = ops.HyperMap()
_flat = ops.MultitypeFuncGraph("flat")
_cut = ops.MultitypeFuncGraph("cut")
_fill = ops.MultitypeFuncGraph("fill")
_slice = P.Slice()


@_flat.register("Tensor")
def _flat_tensor(tensor):
    return tensor.reshape(-1).astype(ms.float32)


@_cut.register("Tensor", "Tensor", "Number")
def _cut_tensor(flat, tensor, start):
    return _slice(flat, (start,), (tensor.size,)).reshape(tensor.shape)


@_fill.register("Tensor", "Tensor", "Number")
def _fill_tensor(flat, parameter, start):
    part = _slice(flat, (start,), (parameter.size,))
    ops.assign(parameter, part.reshape(parameter.shape).astype(parameter.dtype))
    return True


class Buckets(nn.Cell):
    """Tensors into flat float32 buckets, and back. Few buckets are unrolled, many tensors go by HyperMap."""

    def __init__(self, buckets: Sequence[Bucket]):
        super().__init__(auto_prefix=False)
        self.bounds = tuple((bucket.first, bucket.last) for bucket in buckets)
        self.starts = tuple(bucket.starts for bucket in buckets)
        self.padding = tuple(bucket.padding for bucket in buckets)

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One tensor a bucket, of its length."""
        flat = _map(_flat, tensors)
        joined = ()
        for index, (first, last) in enumerate(self.bounds):
            parts = flat[first:last]
            if self.padding[index]:
                parts = parts + (ops.zeros((self.padding[index],), ms.float32),)
            joined = joined + (ops.concat(parts),)
        return joined

    def divide(self, joined: tuple[Tensor, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The float32 tensors in ``joined``, in the shapes of ``like``."""
        tensors = ()
        for index, (first, last) in enumerate(self.bounds):
            tensors = tensors + _map(ops.partial(_cut, joined[index]), like[first:last], self.starts[index])
        return tensors

    def fill(self, index: int, flat: Tensor, parameters: tuple[Tensor, ...]) -> tuple[bool, ...]:
        """Set ``parameters``, those of one bucket, from its numbers, in their own types."""
        return _map(ops.partial(_fill, flat), parameters, self.starts[index])
