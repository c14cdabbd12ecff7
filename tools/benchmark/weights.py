"""Time the weight tools on a synthetic full-size SDXL base against ``cp`` of the same file.

    python tools/benchmark/weights.py --folder /fast/disk
    python tools/benchmark/weights.py --folder /fast/disk --tasks load --model sdxl-base

Every task runs in a process of its own, right after a ``cp`` of the file it reads, round after round, so that a disk
whose speed drifts is as fair to one as to the other. Before each of the two, everything written is flushed to the disk
and the input is dropped from the page cache (``--warm`` keeps it there instead). The tools end with an fsync and ``cp``
does not, so both ratios are printed: to ``cp`` alone and to ``cp`` followed by ``sync`` of the copy.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser, positive
from gm.errors import SuiteError, run_door
from gm.files import replacing
from gm.models.architecture import TINY_SDXL, ModelArchitecture, UNetArchitecture
from gm.weights.ckpt import CkptWriter
from gm.weights.keys import UNET, expected_shapes
from gm.weights.safetensors_file import SafetensorsWriter

ROOT = Path(__file__).resolve().parents[2]
SLIM = UNetArchitecture(  # 166 million parameters; every kind of block of SDXL's UNet
    channels=(128, 256, 512),
    down_depths=((0, 0), (2, 2), (2, 2)),
    mid_depth=2,
    up_depths=((2, 2, 2), (2, 2, 2), (0, 0, 0)),
)
MODELS = {"sdxl-base": ModelArchitecture(), "slim": ModelArchitecture("sdxl-like", SLIM), "tiny": TINY_SDXL}
CONVERT = [sys.executable, str(ROOT / "tools/model_conversion/convert_weight.py"), "--task"]
INSPECT = [sys.executable, str(ROOT / "tools/model_conversion/inspect_weight.py")]
MERGE = [sys.executable, str(ROOT / "tools/weight_merge/merge_weight.py")]
PIECE = 2**20  # values written, or bytes read, at once
# Random bits, masked and filled so, are four float16 of either sign between 2**-7 and 2**-3, as real weights are.
KEPT, ADDED = np.uint64(0xAFFF_AFFF_AFFF_AFFF), np.uint64(0x2000_2000_2000_2000)
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """A command, the file it reads (what ``cp`` copies beside it), and the file or folder it writes."""

    command: list[str]
    source: Path
    target: Path | None = None


def random_pieces(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Flat pieces of random float16 values."""
    remaining = math.prod(shape)
    while remaining:
        count = min(remaining, PIECE)
        words = rng.integers(0, 2**64, (count + 3) // 4, np.uint64) & KEPT | ADDED
        yield words.view(np.float16)[:count]
        remaining -= count


def write_synthetic(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """A float16 weight file with these keys and random values, written piece by piece; its name says the format."""
    rng = np.random.default_rng(seed)
    with replacing(path) as file:
        if path.suffix == ".ckpt":
            writer = CkptWriter(file)
        else:
            writer = SafetensorsWriter(file, [(name, shape, "F16") for name, shape in shapes.items()])
        for name, shape in shapes.items():
            writer.add(name, shape, "F16", random_pieces(shape, rng))


def peak_megabytes() -> float:
    """The most memory this process has had resident."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run_tool(command: list[str]) -> None:
    """Run a script in this process as if called by its name, then write its peak memory to the file ``$PEAK``."""
    import runpy

    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        Path(os.environ["PEAK"]).write_text(str(peak_megabytes()))


def measure_load(path: Path) -> dict[str, float]:
    """Build the UNet that ``path`` holds and load it: memory of this process above what it had before, in MB."""
    import mindspore as ms

    from gm.models.build import build_unet
    from gm.weights.files import open_weights
    from gm.weights.load import load_into

    ms.Tensor(np.zeros(1, np.float32)).asnumpy()
    baseline = peak_megabytes()
    started = time.perf_counter()
    with open_weights(path) as weights:
        unet = build_unet(weights.architecture().unet)
        load_into(unet, weights)
    seconds = time.perf_counter() - started
    parameters = sum(parameter.nbytes for parameter in unet.get_parameters()) / 2**20
    peak = peak_megabytes() - baseline
    return {"seconds": seconds, "parameters": parameters, "peak": peak, "ratio": peak / parameters}


def flush(path: Path, warm: bool) -> None:
    """Nothing waits to be written, and ``path`` is (``warm``) in the page cache or is not."""
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if warm:
            while os.read(descriptor, PIECE):
                pass
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def timed(command: list[str], environment: dict[str, str] | None = None) -> dict[str, float]:
    """Wall and processor seconds of a command."""
    started = time.perf_counter()
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SuiteError(f"{' '.join(command)} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "processor": processor}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def measure(task: Task, warm: bool) -> dict[str, float]:
    """``cp`` of the input, then the task, each from the same state of the page cache."""
    copy, peak = task.source.with_name("copy"), task.source.with_name("peak")
    flush(task.source, warm)
    cp = timed(["cp", str(task.source), str(copy)])
    synced = timed(["sync", str(copy)])
    copy.unlink()
    if task.target:
        remove(task.target)
    flush(task.source, warm)
    script = task.command[1:]
    tool = timed(
        [sys.executable, __file__, "--run", *script], os.environ | {"PEAK": str(peak), "PYTHONDONTWRITEBYTECODE": "1"}
    )
    figures = {
        "cp": cp["seconds"],
        "cp_processor": cp["processor"],
        "cp_sync": cp["seconds"] + synced["seconds"],
        **tool,
        "peak": float(peak.read_text()),
    }
    peak.unlink()
    return figures


def tasks(folder: Path, base: Path, unet: Path) -> dict[str, Task]:
    """Everything that can be timed, in an order in which each finds what it reads."""
    kept, back, merged, hub = folder / "kept.ckpt", folder / "back.safetensors", folder / "merged.ckpt", folder / "hub"
    single = folder / "float32.ckpt"
    to_ms = [*CONVERT, "st_to_ms", "--weight_safetensors", str(base), "--weight_ms"]
    return {
        "st_to_ms": Task([*to_ms, str(kept)], base, kept),
        "st_to_ms_fp32": Task([*to_ms, str(single), "--dtype", "fp32"], base, single),
        "ms_to_st": Task(
            [*CONVERT, "ms_to_st", "--weight_ms", str(kept), "--weight_safetensors", str(back)], kept, back
        ),
        "ms_to_diffusers": Task(
            [*CONVERT, "ms_to_diffusers", "--weight_ms", str(kept), "--weight_diffusers", str(hub)], kept, hub
        ),
        "merge": Task(
            [*MERGE, "--base_weight", str(base), "--additional_weights", str(unet), "--save_path", str(merged)],
            base,
            merged,
        ),
        "inspect": Task([*INSPECT, str(base)], base),
        "inspect_values": Task([*INSPECT, str(base), "--values"], base),
    }


def compare(folder: Path, model: str, names: list[str], rounds: int, warm: bool) -> None:
    """Time the chosen tasks and print medians."""
    shapes = expected_shapes(MODELS[model])
    base, unet = folder / "base.safetensors", folder / "unet.ckpt"
    write_synthetic(base, shapes, seed=0)
    if "merge" in names:
        trained = {name: shape for name, shape in shapes.items() if name.startswith(UNET)}
        write_synthetic(unet, trained, seed=1)
    known = tasks(folder, base, unet)
    if "st_to_ms" not in names and {"ms_to_st", "ms_to_diffusers"} & set(names):
        timed(known["st_to_ms"].command)
    needed = {known[name].source for name in names}
    size = base.stat().st_size / 1e9
    cache = "warm" if warm else "cold"
    print(f"{model}, float16, {size:.2f} GB, {len(shapes)} tensors; median of {rounds}; page cache {cache}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            found[name].append(measure(known[name], warm))
            print(f"round {turn + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
            if known[name].target and known[name].target not in needed:
                remove(known[name].target)
    print("task              seconds     cp  ratio  cp+sync  ratio  CPU s  cp CPU s  peak MB")
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        middle["ratio"], middle["sync_ratio"] = (
            statistics.median(run["seconds"] / run[key] for run in runs) for key in ("cp", "cp_sync")
        )
        print(
            "{name:<16} {seconds:8.1f} {cp:6.1f} {ratio:6.2f} {cp_sync:8.1f} {sync_ratio:6.2f} {processor:6.1f} "
            "{cp_processor:9.1f} {peak:8.0f}".format(name=name, **middle)
        )


def load(folder: Path, model: str) -> None:
    """Write a UNet, load it in a process of its own, print its figures."""
    path = folder / "unet.safetensors"
    shapes = {name: shape for name, shape in expected_shapes(MODELS[model]).items() if name.startswith(UNET)}
    write_synthetic(path, shapes, seed=0)
    done = subprocess.run([sys.executable, __file__, "--measure_load", path], capture_output=True, text=True)
    if done.returncode:
        raise SuiteError(f"loading failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(
        f"load the UNet of {model}: {figures['seconds']:.1f} s, parameters {figures['parameters']:,.0f} MB, "
        f"peak above the start {figures['peak']:,.0f} MB, {figures['ratio']:.3f} of the parameters"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--run"]:
        return run_tool(arguments[1:])
    if arguments[:1] == ["--measure_load"]:
        return print(json.dumps(measure_load(Path(arguments[1]))))
    names = [*tasks(Path(), Path(), Path()), "load"]
    parser = Parser(__doc__)
    parser.add_argument("--folder", required=True, help="where to work; needs 5 times the size of the model")
    parser.add_argument("--model", choices=MODELS, default="sdxl-base")
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--warm", action="store_true", help="inputs are in the page cache, instead of on the disk")
    options = parser.parse(arguments)
    folder = Path(options.folder) / "weights_benchmark"
    folder.mkdir(parents=True)
    try:
        if chosen := [name for name in options.tasks if name != "load"]:
            compare(folder, options.model, chosen, options.rounds, options.warm)
            remove(folder)
            folder.mkdir()
        if "load" in options.tasks:
            load(folder, options.model)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_door(main)
