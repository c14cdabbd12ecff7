"""Compilations of graphs: counted, timed, and kept between runs under a name that no other graph has.

MindSpore can keep compiled graphs on disk (``MS_COMPILER_CACHE_ENABLE``), but it knows them by the source files and
their order alone: a changed shape, constant or network then meets the old graph and computes wrong numbers without a
word. Here every graph is kept under a hash of all that shapes it.
"""

import atexit
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.nn.cell import _cell_graph_executor  # by that name in every release supported

from gm.files import make_folder, replacing

log = logging.getLogger(__name__)

# What a Cell keeps about one process, or that its parts say themselves. All else that it holds is in the hash.
_ORDINARY = frozenset(vars(nn.Cell())) - {"_scope", "_func_graph_flags", "_jit_config_dict", "_has_config_recompute"}

_OWN = ("_signatures", "_key", "_ready")
# Environment variables that change what is compiled; others of MindSpore name ports and processes.
_SETTINGS = ("MS_DEV_", "MS_ENABLE_", "MS_WORKER_NUM", "RANK_SIZE", "ONEDNN_", "DNNL_", "OMP_")


@dataclass(frozen=True)
class Compilation:
    """A graph that was made ready: the Cell's class, the shapes of its inputs, how long it took (its first run
    included), and whether it came from the cache."""

    what: str
    shapes: tuple[tuple[int, ...], ...]
    seconds: float
    from_cache: bool


Signature = tuple[tuple[tuple[int, ...], str], ...]

_store: "Store | None" = None
_around: Callable[[], AbstractContextManager] = nullcontext
_done: list[Compilation] = []


def keep_in(folder: str | Path | None) -> None:
    """Keep the graphs of this process in a folder, and take from there what is the same; None: keep nothing.

    Once a process has kept a graph it keeps to that folder. Raises OSError if nothing can be kept there.
    """
    global _store
    _store = None if folder is None else Store(make_folder(folder))


def hold_around(around: Callable[[], AbstractContextManager]) -> None:
    """Enter a context of this process's own around every compilation."""
    global _around
    _around = around


def done() -> tuple[Compilation, ...]:
    """Every compilation of this process, in order."""
    return tuple(_done)


class Graph(nn.Cell):
    """A Cell that is called from Python: each new combination of input shapes and types compiles it, once.

    A call of what is compiled goes straight to the graph. MindSpore's own way asks first whether it is there, and on
    that occasion writes an attribute into every Cell of the network: 3 ms for the smallest UNet.
    """

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        signature = tuple((tuple(value.shape), str(value.dtype)) for value in inputs if isinstance(value, ms.Tensor))
        known = self.__dict__.setdefault("_signatures", set())
        if options or ms.get_context("mode") != ms.GRAPH_MODE:
            return super().__call__(*inputs, **options)
        if signature in known:
            return self._run(signature, inputs)
        if not known:
            self.__dict__["_key"] = fingerprint(self)  # now, as compiling adds to what a Cell holds
        known.add(signature)
        started = time.monotonic()
        kept = _store.entry(_hash(self._key, repr(signature))) if _store else nullcontext(lambda: False)
        with _around():
            with kept as was_kept:
                outputs = super().__call__(*inputs)
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                if isinstance(output, ms.Tensor):
                    output.asnumpy()  # a graph's first run belongs to its compilation
        compilation = Compilation(
            type(self).__name__, tuple(shape for shape, _ in signature), time.monotonic() - started, was_kept()
        )
        _done.append(compilation)
        return outputs

    def _run(self, signature: Signature, inputs: tuple[Any, ...]) -> Any:
        ready = self.__dict__.setdefault("_ready", {})
        graph = ready.get((signature, self.phase))  # the phase says whether the Cell trains
        if graph is not None and len(signature) == len(inputs) and _cell_graph_executor.has_compiled(graph):
            return _cell_graph_executor._exec_pip(self, *inputs, phase=graph)
        outputs = super().__call__(*inputs)
        ready[signature, self.phase] = self.__dict__.get("current_phase")
        return outputs


class Store:
    """Compiled graphs in a folder: ``<surroundings>/<key>.mindir``.

    MindSpore itself reads and writes ``compile_cache_<n>.mindir``, n counting a process's compilations, in one folder
    that cannot be changed once it was used, and takes what lies there for the n-th graph. So every process gets such a
    folder of its own, and each graph is laid there under the number it is about to have. MindSpore's own check, that
    the source files are the same, stays: ``compile_dependency.hash``. After the first graph of a process that is not
    there, it looks for no other one.
    """

    DIGEST = "compile_dependency.hash"

    process: "Store | None" = None  # the one MindSpore has been told of
    count = 0  # compilations of this process that went through it

    def __init__(self, folder: Path):
        self.folder = folder
        self.works = True
        # What the names of its files begin with where MindSpore's own cluster connects the processes, and elsewhere.
        self.roles = ("", "MS_WORKER") if int(os.environ.get("RANK_SIZE", "1")) > 1 else ("",)

    @contextmanager
    def entry(self, key: str) -> Iterator[Callable[[], bool]]:
        """While compiling the graph of ``key``; yields what tells afterwards whether it came from the store."""
        used = Store.process or self
        if not used.works:
            yield lambda: False
            return
        if Store.process is None:
            used._open()
        number, Store.count = Store.count, Store.count + 1
        graphs = [used.work / f"{role}compile_cache_{number}.mindir" for role in used.roles]
        kept, laid = used.kept / f"{key}.mindir", {}
        if kept.exists():
            for graph in graphs:
                shutil.copyfile(kept, graph)
                laid[graph] = graph.stat().st_mtime_ns
        ms.set_context(enable_compile_cache=True, compile_cache_path=str(used.root))
        made = None
        try:
            yield lambda: made is None and bool(laid)
        finally:
            ms.set_context(enable_compile_cache=False)
        made = next((place for place in graphs if place.exists() and place.stat().st_mtime_ns != laid.get(place)), None)
        if made is None and not laid:
            used.works = False
            log.warning("this MindSpore keeps its graphs in another way: --compile_cache has no effect")
            return
        if made is not None:
            digest = made.with_name(made.name.removesuffix(f"compile_cache_{number}.mindir") + used.DIGEST)
            for ours, place in ((made, kept), (digest, used.kept / used.DIGEST)):
                with replacing(place) as file, ours.open("rb") as source:
                    shutil.copyfileobj(source, file)
        for graph in graphs:
            graph.unlink(missing_ok=True)

    def _open(self) -> None:
        self.kept = self.folder / _hash(*_surroundings())
        self.kept.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="graphs-"))
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.work = self.root / f"rank_{os.environ.get('RANK_ID', '0')}" / "graph_cache"
        self.work.mkdir(parents=True)
        if (self.kept / self.DIGEST).exists():
            for role in self.roles:
                shutil.copyfile(self.kept / self.DIGEST, self.work / f"{role}{self.DIGEST}")
        Store.process = self


def _hash(*facts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    return digest.hexdigest()


def fingerprint(cell: nn.Cell) -> str:
    """All that a Cell and the Cells in it hold: classes, numbers, constant tensors, primitives with their attributes,
    names, shapes and types of parameters. Not the values of parameters: they are inputs of a graph."""
    parts = []
    for name, part in cell.cells_and_names():
        held = {key: value for key, value in vars(part).items() if key not in _ORDINARY and key not in _OWN}
        facts = [f"{key}={_describe(held[key])}" for key in sorted(held)]
        facts += [f"{key}:{_describe(value)}" for key, value in sorted(part._params.items())]
        parts.append(f"{name} {type(part).__module__}.{type(part).__qualname__} {' '.join(facts)}")
    return "\n".join(parts)


def _describe(value: Any) -> str:
    if isinstance(value, ms.Parameter):
        return f"{value.name}{tuple(value.shape)}{value.dtype}{value.requires_grad}"
    if isinstance(value, ms.Tensor):
        array = value.astype(ms.float32).asnumpy() if value.dtype == ms.bfloat16 else value.asnumpy()
        return f"{value.shape}{value.dtype}{hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_describe(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ",".join(_describe(item) for item in value) + ")"
    if isinstance(value, nn.Cell):
        return type(value).__qualname__  # its parts are described on their own
    if callable(value) and not isinstance(value, ms.ops.Primitive):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text  # an address is another one in every process


@cache
def _surroundings() -> tuple[str, ...]:
    """What shapes every graph of this process: this package's source, MindSpore, Python, the machine, settings."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)]
    return (
        digest.hexdigest(),
        Path(sys.argv[0]).name,
        ms.__version__,
        sys.version,
        platform.platform() + platform.machine(),
        str(ms.get_context("device_target")),
        str(ms.get_context("deterministic")),
        *settings,
    )
