"""Parameters laid end to end in few flat ones that are the same memory: one operator goes over hundreds of tensors.

A step of the smallest UNet updates 326 tensors, most of them small, and on a CPU every operator has a price beside its
arithmetic, when it is compiled and when it runs. There MindSpore lets a Parameter have the memory of a NumPy array
(``Tensor.from_numpy``), so that a weight and its place in a flat Parameter are one.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm.models.layers import stands_in
from gm.parallel.buckets import Buckets
from gm.parallel.shards import Item, plan

MEGABYTES = 16.0  # of a flat parameter, about: more at once took as long, and more memory
ROWS = 64  # divides the length of one, for sums of squares as products of rows
ALIGNMENT = 16  # numbers, 64 bytes
HUGE = 1e18  # squares of larger numbers have no finite sum


def joins(parameters: Sequence[Parameter]) -> bool:
    """Whether these can be laid end to end here."""
    return stands_in("joint_update") and all(parameter.dtype == ms.float32 for parameter in parameters)


class Memory:
    """Parameters that are parts of others' memory."""

    def __init__(self) -> None:
        self._parts: list[tuple[Parameter, np.ndarray]] = []
        self._addresses: list[int] = []

    def lay(self, parameters: Sequence[Parameter], length: int, name: str) -> Parameter:
        """A flat float32 Parameter (length,): the values of ``parameters``, which it now shares, and zeros."""
        room = np.zeros(length + ALIGNMENT, np.float32)
        start = -(room.ctypes.data // room.itemsize) % ALIGNMENT
        numbers, place = room[start : start + length], 0
        for parameter in parameters:
            self._give(parameter, numbers[place : place + parameter.size].reshape(parameter.shape))
            place += parameter.size
        flat = Parameter(numbers, name=name, requires_grad=False)  # a copy yet
        flat.set_data(Tensor.from_numpy(numbers))
        return flat

    def tie(self) -> None:
        """Share again with those that were given memory of their own since (``set_data``), by their values there."""
        found = [parameter.data_ptr() for parameter, _ in self._parts]
        if found == self._addresses:
            return
        parts = list(zip(self._parts, found, self._addresses))
        self._parts, self._addresses = [], []
        for (parameter, part), now, before in parts:
            if now != before:
                self._give(parameter, part)
            else:
                self._parts.append((parameter, part))
                self._addresses.append(before)

    def _give(self, parameter: Parameter, part: np.ndarray) -> None:
        part[...] = parameter.asnumpy()
        parameter.set_data(Tensor.from_numpy(part))
        self._parts.append((parameter, part))
        self._addresses.append(parameter.data_ptr())


class Joint(nn.Cell):
    """``parameters``, those that decay first, in the order of their gradients.

    ``flats``: the same, end to end. ``construct(gradients)`` returns as many gradients as there are of them.
    """

    def __init__(self, items: Sequence[Item], parameters: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.memory = Memory()
        self.names = tuple(item.name for item in items)
        self.plan = plan(items, MEGABYTES, ROWS)
        self.buckets = Buckets(self.plan)
        self.flats = self.lay(parameters, "joint")
        for flat, bucket in zip(self.flats, self.plan):
            flat.decays = bucket.decays
        # One past the last number of each tensor, in its flat one.
        ends = [np.add(bucket.starts, [item.size for item in bucket.items]) for bucket in self.plan]
        self.ends = tuple(Tensor(end - 1, ms.int32) for end in ends)
        self.sound = Tensor(np.zeros(len(parameters)), ms.float32)
        self.unsound = Tensor(np.full(len(parameters), np.inf), ms.float32)

    def lay(self, parameters: Sequence[Parameter], prefix: str) -> ParameterTuple:
        """Flat Parameters that share the memory of what there is for each of the joined ones, in their order."""
        return ParameterTuple(
            [
                self.memory.lay(parameters[bucket.first : bucket.last], bucket.length, f"{prefix}.{number}")
                for number, bucket in enumerate(self.plan)
            ]
        )

    def tie(self) -> None:
        """To be called before a step: whatever was set in between is now in the flat ones too."""
        self.memory.tie()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.buckets(gradients)

    def marks(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """A number for each tensor in the flat ``gradients``, finite if the sum of its squares is."""
        counts = ()
        for index, gradient in enumerate(gradients):
            bad = 1.0 - (ops.abs(gradient) < HUGE).astype(ms.float32)
            # Counted exactly: a tensor of more than 2**24 numbers has a flat one to itself.
            upto = ops.gather(ops.cumsum(bad, 0), self.ends[index], 0)
            counts = counts + (upto - ops.concat((ops.zeros((1,), ms.float32), upto[:-1])),)
        return ops.select(ops.concat(counts) > 0.0, self.unsound, self.sound)
