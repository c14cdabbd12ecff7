"""One process of several that train a small network in many ways, one after the other; MindSpore is loaded once.

    msrun --worker_num=N --local_worker_num=N ... tests/parallel/worker.py FOLDER CASE[=STATE] ...

Alone it needs no msrun. Each case of ``CASES`` trains ``STEPS`` steps on the same samples, however many processes there
are, and leaves FOLDER/<case>: checkpoints in the middle and at the end, and <rank>.npz with the losses and norms of
every step and the bytes this process keeps. With STATE, a state folder of another case, it goes on from there.
"""
# ruff: noqa: E402  (a core must be chosen before MindSpore is imported)

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm import launch
from gm.config import Config
from gm.config.sections.machine import LaunchConfig

DEVICE = launch.start(LaunchConfig(rank_timeout=20), together=True)

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gm.models.architecture import ModelArchitecture, UNetArchitecture
from gm.models.layers import Conv2d, Initializer
from gm.models.unet import TransformerBlock
from gm.parallel.collectives import AllGather, AllReduce, Group, ReduceScatter
from gm.parallel.mesh import Mesh
from gm.parallel.world import World
from gm.training.assemble import Parts, assemble
from gm.training.run import Run
from gm.training.run_folder import RunFolder
from gm.training.state import Progress, restore, save
from gm.training.step import tensors

GLOBAL = 4  # samples of a forward pass on all devices together
STEPS = 4
OVERFLOW = 1  # the step in which half precision meets a sample with too large a gradient
SIDE, WIDTH, CONTEXT = 4, 8, 6
ARCHITECTURE = ModelArchitecture("sd-1", UNetArchitecture(vector_dim=None), None, (), size_numbers=0)

BASE = {
    "optim.clip_grad": True,
    "optim.max_grad_norm": 0.5,
    "optim.use_ema": True,
    "optim.epsilon": 1e-6,
    "parallel.bucket_mb": 0.002,
}
ACCUMULATED = BASE | {"optim.gradient_accumulation_steps": 2}
HALF = ACCUMULATED | {"launch.precision": "fp16", "launch.param_fp16": True, "launch.init_loss_scale": 256.0}
TWO_BY_TWO = {"parallel.ici_fsdp_parallelism": 2, "parallel.ici_data_parallelism": 2}
CASES = {
    "plain": BASE,
    "accumulated": ACCUMULATED,
    "half": HALF,
    "zero1": BASE | {"parallel.zero_stage": 1},
    "zero1_accumulated": ACCUMULATED | {"parallel.zero_stage": 1},
    "zero2": BASE | {"parallel.zero_stage": 2},
    "zero2_accumulated": ACCUMULATED | {"parallel.zero_stage": 2},
    "zero2_half": HALF | {"parallel.zero_stage": 2},
    "zero3": BASE | {"parallel.zero_stage": 3},
    "zero3_accumulated": ACCUMULATED | {"parallel.zero_stage": 3, "train.recompute": "transformer"},
    "zero3_half": HALF | {"parallel.zero_stage": 3},
    "tensor": BASE | {"parallel.ici_tensor_parallelism": 2},
    "tensor_accumulated": ACCUMULATED | {"parallel.ici_tensor_parallelism": 2},
    "zero2_2x2": BASE | {"parallel.zero_stage": 2} | TWO_BY_TWO,
    "zero3_2x2": BASE | {"parallel.zero_stage": 3} | TWO_BY_TWO,
}


class SmallUNet(nn.Cell):
    """The UNet's signature on one transformer block between two convolutions."""

    def __init__(self):
        super().__init__()
        self.dtype = ms.float32
        self.inward = Conv2d(4, WIDTH, 3, padding=1)
        self.block = TransformerBlock(WIDTH, CONTEXT, 2)
        self.outward = Conv2d(WIDTH, 4, 3, padding=1)

    def construct(self, latents, timesteps, context, vector=None):
        x = latents + 0.001 * timesteps.reshape(-1, 1, 1, 1)
        x = self.inward(x.astype(self.dtype))
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height * width).transpose(0, 2, 1)
        x = self.block(x, context.astype(self.dtype))
        x = x.transpose(0, 2, 1).reshape(batch, channels, height, width)
        return self.outward(x).astype(latents.dtype)


def network(config: Config) -> SmallUNet:
    from gm.models.precision import set_precision

    Initializer.current = np.random.default_rng(3)
    try:
        unet = SmallUNet()
    finally:
        Initializer.current = None
    for name, parameter in unet.parameters_and_names():
        parameter.name = f"model.{name}"
    set_precision(unet, config.launch.precision, config.launch.param_fp16)
    return unet


def configuration(settings: dict, batch: int = 1) -> Config:
    config = Config()
    config.data.per_batch_size = batch
    for path, value in settings.items():
        section, leaf = path.split(".")
        setattr(getattr(config, section), leaf, value)
    return config


def samples(seed: int, count: int, spike: bool = False) -> dict[str, np.ndarray]:
    """Fields of a batch; the last sample only fills it up, as at the end of an epoch. With a ``spike`` the gradient of
    the first one is beyond the range of float16."""
    rng = np.random.default_rng(seed)
    alpha = np.sqrt(rng.uniform(0.1, 0.9, count))
    latents = (count, 4, SIDE, SIDE)
    batch = {
        "moments": rng.standard_normal((count, 8, SIDE, SIDE)),
        "posterior_noise": rng.standard_normal(latents),
        "noise": rng.standard_normal(latents),
        "input_noise": rng.standard_normal(latents),
        "context": rng.standard_normal((count, 7, CONTEXT)),
        "pooled": np.zeros((count, 1)),
        "time_ids": np.zeros((count, 1)),
        "timesteps": rng.integers(0, 1000, count),
        "alpha": alpha,
        "sigma": np.sqrt(1 - alpha**2),
        "target_noise": rng.uniform(0.5, 1, count),
        "target_latents": rng.uniform(-1, 0, count),
        "weight": np.append(np.full(count - 1, count / (count - 1)), 0),
        "inverse_huber_c": np.zeros(count),
    }
    if spike:
        batch["weight"][0] = 1e6
    return {name: values.astype(np.float32) for name, values in batch.items()}


def parts_of(
    step: int, turns: int, batch: int, place: int, places: int, spike: bool = False
) -> list[dict[str, np.ndarray]]:
    """The batches one device has of a step, as ``gm.data.batches`` deals them out."""
    whole = samples(step, GLOBAL * turns, spike)
    starts = [(turn * places + place) * batch for turn in range(turns)]
    return [{name: values[start : start + batch] for name, values in whole.items()} for start in starts]


def kept(parts: Parts) -> int:
    """Bytes of what stays from step to step: weights, float32 weights, moments, averages."""
    optimizer = getattr(parts.optimizer, "inner", parts.optimizer)
    averages = parts.ema.state if parts.ema else []
    held = [*parts.weights, *optimizer.masters, *optimizer.state, *averages]
    return sum(one.size * one.itemsize for one in {id(parameter): parameter for parameter in held}.values())


def train(name: str, folder: Path, resumed: Path | None) -> None:
    settings = CASES[name]
    world = World(Mesh.of(configuration(settings).parallel, DEVICE.size, DEVICE.rank), DEVICE.peers)
    config = configuration(settings, GLOBAL // world.batch[1])
    parts = assemble(config, ARCHITECTURE, network(config), world=world)
    parts.step.set_train()
    _keep.append(parts)
    start = 0
    if resumed:
        start = restore(RunFolder(resumed.parent.parent, resumed), parts.contents).step
    turns, numbers = config.optim.gradient_accumulation_steps, []
    for step in range(start, STEPS):
        spike = "half" in name and step == OVERFLOW
        batches = parts_of(step, turns, config.data.per_batch_size, *world.batch, spike)
        lr = Tensor(1e-3 / (1 + step), ms.float32)
        fetched = parts.step.take([tensors(one) for one in batches], lr).fetch()
        numbers.append([number for number in fetched if number is not None])
        if step + 1 in (STEPS // 2, STEPS):
            save(RunFolder(folder), Progress(step + 1, (0, step + 1), 0), parts.contents, world)
            if folder.name.endswith("_killed") and DEVICE.rank == DEVICE.size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
    np.savez(folder / f"{DEVICE.rank}.npz", numbers=np.array(numbers), kept=kept(parts))


class Source:
    """Endless batches of this device; ``event`` happens when it has read so many."""

    sizes = ((8 * SIDE, 8 * SIDE),)
    steps_per_epoch = 100

    def __init__(self, batch: int, world: World, event: Callable[[], None], after: int | None):
        self.cursor, self.batch, self.world = (0, 0), batch, world
        self.event, self.after = event, after

    def __next__(self) -> dict[str, np.ndarray]:
        epoch, step = self.cursor
        self.cursor = (epoch, step + 1)
        if step + 1 == self.after:
            self.event()
        return parts_of(step, 1, self.batch, *self.world.batch)[0]


def run(folder: Path, event: Callable[[], None], after: int) -> None:
    """A run of 30 steps; ``event`` happens to its last process."""
    settings = CASES["zero2"] | {"train.max_train_steps": 30, "train.save_path": str(folder), "optim.scale_lr": True}
    settings["train.save_ckpt_interval"] = 3
    world = World(Mesh.of(configuration(settings).parallel, DEVICE.size, DEVICE.rank), DEVICE.peers)
    config = configuration(settings, GLOBAL // world.batch[1])
    parts = assemble(config, ARCHITECTURE, network(config), world=world)
    _keep.append(parts)
    if world.first:
        folder.mkdir(parents=True)
    world.wait("folder")
    source = Source(config.data.per_batch_size, world, event, after if world.rank == world.size - 1 else None)
    run = Run(config, RunFolder(folder), ARCHITECTURE, parts, source, world=world)
    run.go()
    (folder / f"done_{world.rank}").write_text(str(run.done))


def interrupt(folder: Path) -> None:
    """Asked to end in the second step."""
    run(folder, lambda: os.kill(os.getpid(), signal.SIGTERM), 2)


def hang(folder: Path) -> None:
    """It waits for ever for the data of the fifth step."""
    run(folder, lambda: time.sleep(600), 5)


GROUPS = {"fsdp": ("fsdp",), "data": ("data",), "all": ("data", "fsdp")}


class Together(nn.Cell):
    """What a group makes of a vector: the sum, this device's part of it, everybody's vectors in a row."""

    def __init__(self, group):
        super().__init__()
        self.reduce, self.scatter, self.gather = AllReduce(group), ReduceScatter(group), AllGather(group)

    def construct(self, x):
        return self.reduce(x), self.scatter(x), self.gather(x)


def communicate(folder: Path) -> None:
    """Leave FOLDER/<group>_<rank>.npz of four processes two by two: each gives its rank's ``vector``."""
    mesh = Mesh.of(configuration(CASES["zero3_2x2"]).parallel, DEVICE.size, DEVICE.rank)
    folder.mkdir(parents=True, exist_ok=True)
    for name, axes in GROUPS.items():
        cell = Together(Group.of(mesh, *axes))
        _keep.append(cell)
        results = [output.asnumpy() for output in cell(Tensor(vector(DEVICE.rank)))]
        np.savez(
            folder / f"{name}_{DEVICE.rank}.npz",
            ranks=mesh.ranks(*axes),
            index=mesh.index(*axes),
            **dict(zip(("sum", "part", "row"), results)),
        )


def vector(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(8).astype(np.float32)


_keep = []  # when a compiled Cell is collected, MindSpore compiles the others anew


def main(folder: str, *names: str) -> None:
    for name in names:
        started = time.monotonic()
        case, _, state = name.partition("=")
        if case == "communicate":
            communicate(Path(folder) / case)
        elif case in ("interrupt", "hang"):
            {"interrupt": interrupt, "hang": hang}[case](Path(folder) / case)
        else:
            train(
                case.removesuffix("_again").removesuffix("_killed"), Path(folder) / case, Path(state) if state else None
            )
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    with DEVICE:
        main(*sys.argv[1:])
