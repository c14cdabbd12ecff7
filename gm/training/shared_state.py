"""Checkpoints of weights and state that several devices share out.

state/step_N/shard_I_of_N.ckpt    pieces of the optimizer's state: numbers from ``begin`` on of the flattened tensor
                                  ``name``, under ``name@begin``; part ``index`` over axis tensor, under
                                  ``name#kind@index``
state/step_N/state.json           "shapes" has the whole tensors' shapes

Weights and averages are joined into the ordinary files at every save. A state is read whatever wrote it: one device or
many, any stage.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from gm.errors import SuiteError
from gm.files import replacing
from gm.parallel.rules import cut, join, whole_shape
from gm.parallel.shards import Item, Shard
from gm.weights.ckpt import CkptWriter
from gm.weights.files import WeightFile, open_weights
from gm.weights.load import TAGS
from gm.weights.sources import JoinedSource, ReshapedSource, Source

MARK, PART = "@", "#"
EMA_PREFIX = "ema."


@dataclass
class Portion:
    """This device's part of tensors ``prefix<name>``: a flat parameter and what lies in it.

    ``only``: the names of those that belong to it, by default all in the shard.
    """

    parameter: Parameter
    shard: Shard
    prefix: str = ""
    only: frozenset[str] | None = None

    def items(self) -> list[Item]:
        """Every tensor of which there is a part, here or on another device."""
        return [item for item in self.shard.bucket.items if self.only is None or item.name in self.only]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors, by name."""
        return {self.prefix + item.name: item.shape for item in self.items()}

    def targets(self, done: list[Callable[[], None]]) -> list["Target"]:
        """What reads whole tensors and keeps what lies here; what is added to ``done`` is to be called at last."""
        numbers = self.parameter.asnumpy().copy()
        places = defaultdict(list)
        for piece in self.shard.pieces():
            places[piece.item.name].append(piece)

        def keep(value: np.ndarray, name: str) -> None:
            for piece in places[name]:
                end = piece.place + piece.end - piece.begin
                numbers[piece.place : end] = value.reshape(-1)[piece.begin : piece.end]

        done.append(lambda: self.parameter.set_data(Tensor(numbers)))
        return [
            Target(self.prefix + item.name, self.parameter.dtype, item.shape, partial(keep, name=item.name))
            for item in self.items()
        ]

    def pieces(self) -> Iterator[tuple[str, np.ndarray]]:
        """What is kept here, by ``name@begin``."""
        names, numbers = {item.name for item in self.items()}, self.parameter.asnumpy()
        for piece in self.shard.pieces():
            if piece.item.name in names:
                values = numbers[piece.place : piece.place + piece.end - piece.begin]
                yield f"{self.prefix}{piece.item.name}{MARK}{piece.begin}", values


@dataclass
class Slice:
    """Part ``index`` of ``count`` of the tensor ``prefix<name>``, which axis tensor divides as ``kind`` says."""

    parameter: Parameter
    name: str
    kind: str
    index: int
    count: int
    prefix: str = ""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As of a ``Portion``, and so are the others."""
        return {self.prefix + self.name: whole_shape(self.kind, tuple(self.parameter.shape), self.count)}

    def targets(self, done: list[Callable[[], None]]) -> list["Target"]:
        def keep(value: np.ndarray) -> None:
            self.parameter.set_data(Tensor(cut(self.kind, value, self.index, self.count)))

        (item,) = self.shapes().items()
        return [Target(item[0], self.parameter.dtype, item[1], keep)]

    def pieces(self) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{self.prefix}{self.name}{PART}{self.kind}{MARK}{self.index}", self.parameter.asnumpy()


@dataclass(frozen=True)
class SlicesSource:
    """A tensor from its parts over axis tensor."""

    kind: str
    parts: Sequence[Source]

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return whole_shape(self.kind, self.parts[0].shape, len(self.parts))

    def stream(self) -> Iterator[np.ndarray]:
        yield self.read().reshape(-1)

    def read(self) -> np.ndarray:
        return join(self.kind, [part.read() for part in self.parts])


@dataclass(frozen=True)
class Whole:
    """A whole tensor, as a checkpoint is written from Parameters; ``values`` is called when it is."""

    name: str
    dtype: ms.Type
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def asnumpy(self) -> np.ndarray:
        return self.values()


@dataclass
class Target:
    """A whole tensor to be read, as a Parameter is: ``set_data`` keeps what this device has of it."""

    name: str
    dtype: ms.Type
    shape: tuple[int, ...]
    keep: Callable[[np.ndarray], None]

    def set_data(self, value: Tensor) -> None:
        self.keep(value.asnumpy())


@dataclass
class Shares:
    """All that is shared out on this device, which is number ``index`` of ``count``.

    ``writes``: one of the devices that have the same parts does.
    """

    weights: list[Portion | Slice] = field(default_factory=list)
    averages: list[Portion | Slice] = field(default_factory=list)
    state: list[Portion | Slice] = field(default_factory=list)
    published: list[Portion] = field(default_factory=list)  # parts of weights that every device also has whole
    index: int = 0
    count: int = 1
    writes: bool = True

    def fill_published(self, weights: dict[str, Parameter]) -> None:
        """Take the parts of what every device has whole from there."""
        done: list[Callable[[], None]] = []
        for target in targets(self.published, done):
            target.keep(weights[target.name].asnumpy())
        for finish in done:
            finish()

    def write(self, folder: Path) -> None:
        """This device's files."""
        if self.writes:
            place = f"{self.index}_of_{self.count}.ckpt"
            write_pieces(folder / f"shard_{place}", self.state)
            if self.weights or self.averages:
                write_pieces(folder / f"weights_{place}", [*self.weights, *self.averages])

    @contextmanager
    def joined(
        self, folder: Path, weights: Sequence[Parameter], averages: Sequence[Parameter]
    ) -> Iterator[tuple[list, list]]:
        """All weights and averages whole, in the order of ``weights``; ``averages`` are those not shared out.

        The others are read from the files of all devices, which then go.
        """
        known = {parameter.name: parameter for parameter in (*weights, *averages)}
        files, shapes = sorted(folder.glob("weights_*.ckpt")), shapes_of([*self.weights, *self.averages])
        with open_pieces(files, shapes) if files else nullcontext() as file:

            def whole(parameter: Parameter, prefix: str, dtype: ms.Type) -> Parameter | Whole:
                name = prefix + parameter.name
                if name in shapes:
                    return Whole(name, dtype, shapes[name], lambda: file.read(name))
                if name in known:
                    return known[name]
                # what is not trained is its own average
                return Whole(name, dtype, tuple(parameter.shape), parameter.astype(dtype).asnumpy)

            averaged = weights if self.averages or averages else []
            yield (
                [whole(parameter, "", parameter.dtype) for parameter in weights],
                [whole(parameter, EMA_PREFIX, ms.float32) for parameter in averaged],
            )
        for path in files:
            path.unlink()


def shapes_of(portions: Iterable[Portion | Slice]) -> dict[str, tuple[int, ...]]:
    """The whole tensors of which there are parts."""
    return {name: shape for portion in portions for name, shape in portion.shapes().items()}


def write_pieces(path: Path, portions: Iterable[Portion | Slice]) -> None:
    with replacing(path) as file:
        writer = CkptWriter(file)
        for portion in portions:
            tag = TAGS[portion.parameter.dtype]
            for name, values in portion.pieces():
                writer.add(name, values.shape, tag, [np.ascontiguousarray(values)])


def open_pieces(paths: Sequence[Path], shapes: dict[str, Sequence[int]], also: Path | None = None) -> WeightFile:
    """The tensors whose pieces lie in these files as one file of whole tensors, with those of the file ``also``.

    Raises:
        SuiteError: a file cannot be read, a piece is missing; names it.
    """
    files = [open_weights(path) for path in paths if path.stat().st_size]  # a device may have nothing to write
    whole = open_weights(also) if also else None
    sources: dict[str, Source] = dict(whole.sources) if whole else {}
    pieces: dict[str, list[tuple[int, Source]]] = defaultdict(list)
    for file in files:
        for key, source in file.sources.items():
            name, _, begin = key.rpartition(MARK)
            pieces[name].append((int(begin), source))
    for name, found in pieces.items():
        found.sort(key=lambda one: one[0])
        if PART in name:
            name, _, kind = name.partition(PART)
            sources[name] = SlicesSource(kind, [source for _, source in found])
            if sources[name].shape != tuple(shapes.get(name, ())):
                raise SuiteError(f"{(also or paths[0]).parent}: a piece of {name} is missing")
            continue
        counts = [source.shape[0] for _, source in found]
        shape = tuple(shapes.get(name, ()))
        if [begin for begin, _ in found] != [sum(counts[:place]) for place in range(len(counts))] or (
            sum(counts) != np.prod(shape, dtype=int)
        ):
            raise SuiteError(f"{(also or paths[0]).parent}: a piece of {name} is missing")
        sources[name] = ReshapedSource(JoinedSource([source for _, source in found]), shape)
    opened = [one for file in [*files, *([whole] if whole else [])] for one in file.files]
    return WeightFile(also or paths[0].parent, sources, "original", opened)


def open_state(folder: Path, shapes: dict[str, Sequence[int]]) -> WeightFile:
    """All of a state folder, whole, whether one device wrote it or several."""
    return open_pieces(sorted(folder.glob("shard_*_of_*.ckpt")), shapes, folder / "optimizer.ckpt")


def targets(portions: Iterable[Portion | Slice], done: list[Callable[[], None]]) -> list[Target]:
    """What reads whole tensors into what this device has of them; call what is added to ``done`` after all."""
    return [target for portion in portions for target in portion.targets(done)]


def unaveraged(weights: Sequence[Parameter], averages: Sequence[Target | Parameter]) -> list[Target]:
    """Reads the averages of weights that are not trained, which are these themselves, and keeps nothing."""
    names = {average.name for average in averages}
    return [
        Target(EMA_PREFIX + weight.name, ms.float32, tuple(weight.shape), lambda value: None)
        for weight in weights
        if EMA_PREFIX + weight.name not in names
    ]
