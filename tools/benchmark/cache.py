"""Time the cache: made against its encoder alone, read against what a step needs, and opened with many entries; and the
scan of many pictures that comes before.

    python tools/benchmark/cache.py build --encoder device --pictures 512 --size 2048x1536 --resolution 1024 --workers 2
    python tools/benchmark/cache.py build --encoder sdxl --pictures 32 --size 640x512 --resolution 256
    python tools/benchmark/cache.py read --pictures 1000 --resolution 1024 --batch 4
    python tools/benchmark/cache.py step --steps 30
    python tools/benchmark/cache.py entries --pictures 100000
    python tools/benchmark/cache.py scan --pictures 100000 --size 64x48

``build`` encodes batches that are ready, then makes the cache of as many pictures, with one and the same encoder: the
autoencoder of SDXL or of the tiny SDXL with random weights, or a ``device`` that takes ``--seconds`` a picture and
leaves the processor alone, as an accelerator does. ``read`` goes through epochs of whole training batches. ``step``
trains the tiny SDXL from pictures and from their cache. ``entries`` makes as many small entries from pictures of 16x16
and opens them in a fresh process; with ``--folder`` they stay there for the next time. ``scan`` looks for the first
time, and then again, at JPEGs with captions beside them, as files and in ten tar shards.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config import Config
from gm.config.flags import Parser, positive
from gm.config.sections.data import DataConfig
from gm.data import cache, cache_work, datasets, notes
from gm.data.batches import Batches
from gm.errors import SuiteError, UsageError, run_door

WARM_UP = 2  # batches or steps that do not count


class Words:
    """Ids that stand in for a tokenizer's."""

    hash = "words"

    def encode(self, texts: list[str]) -> tuple[np.ndarray]:
        ids = np.zeros((len(texts), 77), np.int32)
        for row, text in enumerate(texts):
            ids[row, 0] = zlib.crc32(text.encode()) % 40000
        return (ids,)


class Device:
    """An encoder that computes elsewhere: it takes ``seconds`` a picture, and its values are of no account."""

    picture_hash = text_hash = "device"

    def __init__(self, seconds: float = 0.0, states: tuple[int, int] = (2048, 1280)):
        self.seconds = seconds
        self.context, self.pooled = states

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds * len(pictures))
        batch, _, height, width = pictures.shape
        return np.resize(pictures[:, :, ::8, ::8], (batch, 8, height // 8, width // 8))

    def encode_text(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(ids), 77, self.context)
        return np.broadcast_to(np.sin(ids)[..., None], shape), np.resize(np.cos(ids), (len(ids), self.pooled))


def network(name: str, threads: int | None) -> object:
    """The encoders of untrained networks, ready to be compiled."""
    from gm import launch
    from gm.config.sections.machine import LaunchConfig
    from gm.data.encoders import NetworkEncoders

    launch.start(LaunchConfig(device_target="CPU", threads=threads))
    config = Config()
    config.model.weight, config.model.architecture = "", name
    return NetworkEncoders(config)


def draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs like photographs: smooth, with some grain. No two have the same bytes."""
    rng = np.random.default_rng(0)
    width, height = size
    contents = []
    for _ in range(min(count, 8)):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = rng.integers(-6, 7, (height, width, 1))
        path = folder / "drawn.jpg"
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        contents.append(path.read_bytes())
        path.unlink()
    for index in range(count):
        (folder / f"{index:06}.jpg").write_bytes(contents[index % len(contents)] + str(index).encode())
        (folder / f"{index:06}.txt").write_text(f"picture number {index}")


def size_of(text: str) -> tuple[int, int]:
    """Width and height."""
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError(f"--size takes width x height, such as 640x512, not {text!r}")
    return int(match[1]), int(match[2])


def configuration(root: Path, resolution: int, batch: int = 1, workers: int = 2) -> Config:
    config = Config()
    config.data.path, config.cache.path = str(root / "pictures"), str(root / "cache")
    config.data.resolution, config.data.per_batch_size, config.data.num_parallel_workers = resolution, batch, workers
    config.cache.latent = config.cache.text_embedding = True
    return config


def build(options: argparse.Namespace, root: Path) -> None:
    """Seconds of the encoder alone, of the cache of as many pictures, and their ratio."""
    config = configuration(root, options.resolution, workers=options.workers)
    config.cache.text_embedding = False
    draw(root / "pictures", options.pictures, size_of(options.size))
    if options.encoder == "device":
        encoders = Device(options.seconds)
    else:
        encoders = network({"sdxl": "sdxl-base"}.get(options.encoder, options.encoder), options.threads)
    side = options.resolution
    size = cache_work.pictures_at_once(side, side)
    ready = np.random.default_rng(0).uniform(-1, 1, (size, 3, side, side)).astype(np.float32)
    batches = -(-options.pictures // size)
    encoders.encode_pictures(ready)  # compiles
    alone, whole = [], []
    for turn in range(options.rounds):
        begun = time.perf_counter()
        for _ in range(batches):
            encoders.encode_pictures(ready)
        alone.append(time.perf_counter() - begun)
        config.cache.path = str(root / f"cache{turn}")
        begun = time.perf_counter()
        cache.build(config, encoders, Words(), progress=False)
        whole.append(time.perf_counter() - begun)
    rates = [options.pictures / statistics.median(seconds) for seconds in (alone, whole)]
    print(
        f"{options.encoder}, {options.pictures} pictures of {options.size} at {side}, batches of {size}, "
        f"{options.workers} workers: encoder alone {rates[0]:.2f} pictures/s, cache {rates[1]:.2f} pictures/s, "
        f"ratio {rates[0] / rates[1]:.3f} (of {options.rounds} turns)"
    )


def read(options: argparse.Namespace, root: Path) -> None:
    """Samples a second that training reads from a cache of full-size entries."""
    config = configuration(root, options.resolution, options.batch, options.workers)
    draw(root / "pictures", options.pictures, (options.resolution, options.resolution))
    encoders = Device()
    cache.build(config, encoders, Words(), progress=False)
    opened = cache.open(config, None, encoders, Words())
    for turn in ("first", "second"):
        with Batches(config, opened.samples, opened, encoders, Words()) as batches:
            for _ in range(WARM_UP):
                next(batches)
            steps = max(1, options.pictures // options.batch - 4)
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(batches)
            seconds, used = time.perf_counter() - begun, time.process_time() - used
        count = steps * options.batch
        print(
            f"{turn} epoch, {options.workers} workers: {count / seconds:.0f} samples/s of {options.resolution} px, "
            f"{1000 * used / count:.2f} ms of processor time a sample"
        )


def step(options: argparse.Namespace, root: Path) -> None:
    """Seconds of a step of the tiny SDXL from pictures and from their cache."""
    draw(root / "pictures", 64, (96, 80))
    medians = {}
    for kind in ("pictures", "cache"):
        config = configuration(root, 64, options.batch)
        config.model.weight, config.model.architecture, config.model.tokenizer = "", "tiny", "demo/tiny/tokenizer"
        config.train.max_train_steps, config.train.save_path = options.steps, str(root)
        config.train.run_name = f"from_{kind}"
        config.launch.threads = options.threads
        config.cache.latent = config.cache.text_embedding = kind == "cache"
        (root / "config.yaml").write_text(config.to_yaml())
        if kind == "cache":
            _train(root / "config.yaml", "--task", "cache")
        _train(root / "config.yaml")
        lines = [json.loads(line) for line in (root / config.train.run_name / "metrics.jsonl").read_text().splitlines()]
        medians[kind] = statistics.median(line["seconds"] for line in lines[WARM_UP:])
    for kind, seconds in medians.items():
        print(f"tiny, batch {options.batch}, {kind}: {seconds:.3f} s a step ({seconds / medians['pictures']:.2f})")


def _train(config: Path, *flags: str) -> None:
    command = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py"), "--config", str(config), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SuiteError(f"training ended with {done.returncode}: {done.stderr[-500:].strip()}")


def entries(options: argparse.Namespace, root: Path) -> None:
    """Start-up, memory and access of a cache with many entries."""
    rng = np.random.default_rng(0)
    pictures, lines = root / "pictures", []
    listing = pictures / "metadata.jsonl"
    for index in range(0 if listing.exists() else options.pictures):
        folder = pictures / f"{index // 1000:04}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{index:06}.png")
        name = f"{folder.name}/{index:06}.png"
        lines.append(json.dumps({"file_name": name, "text": f"picture number {index}"}))
    if lines:
        listing.write_text("\n".join(lines))
    config = configuration(root, 64, workers=options.workers)
    cache.build(config, Device(states=(64, 32)), Words(), progress=False)
    for turn in ("first", "second"):
        command = [sys.executable, __file__, "opened", "--folder", str(root)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{turn} start, {told['entries']} pictures: {told['open']:.1f} s", end=" ")
        print(f"({told['processor']:.1f} s of a core) to scan and open, {told['first']:.2f} s", end=" ")
        print(f"to the first batch of 4, {told['own'] - told['idle']:.0f} MB of memory")
        print(f"  latent and text of a random sample: {told['median']:.3f} ms, 99 of 100", end=" ")
        print(f"within {told['worst']:.3f} ms ({told['worst_used']:.3f} ms of a core)")


def opened(options: argparse.Namespace, root: Path) -> None:
    """The fresh process of ``entries``."""
    memory = [megabytes()]
    config, encoders = configuration(root, 64, 4), Device(states=(64, 32))
    begun, used = time.perf_counter(), time.process_time()
    found = cache.open(config, None, encoders, Words())
    opening, used = time.perf_counter() - begun, time.process_time() - used
    begun = time.perf_counter()
    with Batches(config, found.samples, found, encoders, Words()) as batches:
        next(batches)
        first = time.perf_counter() - begun
    rng, taken = np.random.default_rng(1), []
    for index in rng.integers(0, len(found.samples), 5000):
        sample = found.samples[index]
        begun = time.perf_counter(), time.thread_time()
        found.moments(sample, 0)
        found.text(sample.captions[0])
        taken.append((time.perf_counter() - begun[0], time.thread_time() - begun[1]))
    (median, _), (worst, worst_used) = 1000 * np.quantile(taken, [0.5, 0.99], axis=0)
    keys = ("entries", "open", "processor", "first", "idle", "own", "median", "worst", "worst_used")
    values = (len(found.samples), opening, used, first, *memory, megabytes(), median, worst, worst_used)
    print(json.dumps(dict(zip(keys, values))))


def scan(options: argparse.Namespace, root: Path) -> None:
    """Seconds of a scan of new pictures, and of the next one."""
    pictures = root / "pictures"
    draw(pictures, options.pictures, size_of(options.size))
    shards: list[list[str]] = [[] for _ in range(10)]
    for index, name in enumerate(sorted(os.listdir(pictures))):
        shards[index // 2 * len(shards) // options.pictures].append(name)  # a picture and its caption
    for number, names in enumerate(shards):
        (root / "tars").mkdir(exist_ok=True)
        with tarfile.open(root / "tars" / f"{number}.tar", "w") as tar:
            for name in names:
                tar.add(pictures / name, name)
    time.sleep(notes.YOUNG / 1e9 + 0.1)  # what was written just now is not remembered
    for folder in (pictures, root / "tars"):
        (folder / datasets.NOTES).unlink(missing_ok=True)
        for turn in ("first", "second"):
            command = [sys.executable, __file__, "scanned", "--folder", str(folder)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{turn} scan of {folder.name}, {told['samples']} samples:", end=" ")
            print(f"{told['seconds']:.1f} s ({told['processor']:.1f} s of a core), {told['own']:.0f} MB")


def scanned(options: argparse.Namespace, root: Path) -> None:
    """The fresh process of ``scan``."""
    before, begun, used = megabytes(), time.perf_counter(), time.process_time()
    samples = datasets.scan(DataConfig(path=str(root)))
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    values = {"seconds": seconds, "processor": used, "own": megabytes() - before}
    print(json.dumps({"samples": len(samples), **values}))


def megabytes() -> float:
    """Resident memory without mapped files, whose pages the system takes back when it needs them."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1000


TASKS = {"build": build, "read": read, "step": step, "entries": entries, "scan": scan}
PARTS = {"opened": opened, "scanned": scanned}  # of entries and scan


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--folder", help="where to write, and leave what was made; default: a temporary folder")
    parser.add_argument("--pictures", type=positive, default=256)
    parser.add_argument("--size", default="640x512", help="of the pictures that are drawn")
    parser.add_argument("--resolution", type=positive, default=256, help="they are framed at")
    parser.add_argument("--encoder", choices=("device", "sdxl", "tiny"), default="device")
    parser.add_argument("--seconds", type=float, default=0.05, help="a device takes for a picture")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--threads", type=positive, help="cores the networks keep to")
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument("--steps", type=positive, default=30)
    parser.add_argument("--rounds", type=positive, default=3)
    if arguments and arguments[0] in PARTS:
        options = parser.parse(["scan", *arguments[1:]])
        PARTS[arguments[0]](options, Path(options.folder))
        return
    options = parser.parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    with contextlib.ExitStack() as stack:
        root = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        TASKS[options.task](options, root)
    print(f"{len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    run_door(main)
