"""What training takes of every device, and what devices tell each other in a step, counted from shapes and the mesh.

Nothing is built for it: one machine predicts for any number of devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gm.config import Config
from gm.models.architecture import ModelArchitecture
from gm.models.flops import layout
from gm.parallel.mesh import Mesh
from gm.parallel.rules import part_shape, rule
from gm.parallel.shards import Item, plan
from gm.training.adafactor import matrix_shape
from gm.weights.keys import AUTOENCODER, UNET, Shapes, expected_shapes

FLOAT32, HALF = 4, 2  # bytes
MOMENTS = {"adamw": 2, "lion": 1}  # float32 numbers a weight


@dataclass(frozen=True)
class Weight:
    """A parameter that a checkpoint keeps: its bytes a number, and whether it is trained."""

    name: str
    shape: tuple[int, ...]
    itemsize: int = FLOAT32
    trained: bool = True

    @property
    def item(self) -> Item:
        return Item(self.name, self.shape, len(self.shape) > 1)

    @property
    def size(self) -> int:
        return self.item.size


@dataclass(frozen=True)
class Persistent:
    """Bytes a device keeps from step to step. ``sums``: of accumulated gradients."""

    weights: int
    optimizer: int
    average: int
    sums: int
    gradients: int  # of one backward pass, all there at once unless they are shared out as they come

    @property
    def kept(self) -> int:
        """What stays between steps but for the sums."""
        return self.weights + self.optimizer + self.average


def weights_of(config: Config, architecture: ModelArchitecture) -> list[Weight]:
    """What is trained of a model, from its architecture."""
    shapes = expected_shapes(architecture)
    chosen = {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(UNET) or (config.train.text_encoders and not name.startswith(AUTOENCODER))
    }
    half = config.launch.param_fp16
    return [
        Weight(name, shape, HALF if half and name.startswith(UNET) and not of_norm(name, shapes) else FLOAT32)
        for name, shape in chosen.items()
    ]


def of_norm(name: str, shapes: Shapes) -> bool:
    """Whether a parameter is a norm's: its weight is a vector."""
    weight = name.rpartition(".")[0] + ".weight"
    return len(shapes.get(weight, ())) == 1


def persistent(config: Config, weights: Sequence[Weight], mesh: Mesh) -> Persistent:
    """What a device of the mesh keeps; exact, padding included."""
    optim, stage = config.optim, config.parallel.zero_stage if mesh.size > 1 else 0
    parts, accumulates = mesh.degree("fsdp"), optim.gradient_accumulation_steps > 1
    trained = [weight for weight in weights if weight.trained]
    if not stage:
        tensor = mesh.degree("tensor")
        weights, trained = ([_part(weight, tensor) for weight in some] for some in (weights, trained))
        count = sum(weight.size for weight in trained)
        narrow = sum(weight.size for weight in trained if weight.itemsize < FLOAT32)
        return Persistent(
            sum(weight.size * weight.itemsize for weight in weights),
            _moments(config, trained) + FLOAT32 * narrow + scalars(config),
            FLOAT32 * sum(weight.size for weight in weights) if optim.use_ema else 0,
            FLOAT32 * count if accumulates else 0,
            sum(weight.size * weight.itemsize for weight in trained),
        )
    split = [weight for weight in trained if stage == 3 and shared(weight)]
    whole = sorted((weight for weight in trained if weight not in set(split)), key=lambda one: not one.item.decays)
    buckets = plan([weight.item for weight in whole], config.parallel.bucket_mb, parts)
    flat = sum(bucket.length // parts for bucket in buckets)
    own = [(-(-weight.size // parts), weight.itemsize) for weight in split]
    numbers = flat + sum(count for count, _ in own)
    gradients = FLOAT32 * numbers
    if stage == 1:
        gradients += sum(weight.size * weight.itemsize for weight in trained)
    else:  # while the exchange of one bucket or layer runs, the next one is made
        gradients += 2 * FLOAT32 * max([bucket.length for bucket in buckets] + [weight.size for weight in split])
    kept = [weight for weight in weights if weight not in set(split)]
    sums = numbers if stage > 1 else sum(weight.size for weight in trained)
    masters = flat + sum(count for count, itemsize in own if itemsize < FLOAT32)
    return Persistent(
        sum(weight.size * weight.itemsize for weight in kept) + sum(count * itemsize for count, itemsize in own),
        FLOAT32 * (MOMENTS[optim.optimizer] * numbers + masters) + scalars(config),
        FLOAT32 * numbers if optim.use_ema else 0,
        FLOAT32 * sums if accumulates else 0,
        gradients,
    )


def _part(weight: Weight, devices: int) -> Weight:
    """What a device has of a weight that axis tensor may divide."""
    found = rule(weight.name, "tensor") if devices > 1 else None
    return replace(weight, shape=part_shape(found.kind, weight.shape, devices)) if found else weight


def shared(weight: Weight) -> bool:
    """Whether stage 3 leaves a device only its part of it."""
    return len(weight.shape) > 1 and rule(weight.name, "fsdp") is not None


def scalars(config: Config) -> int:
    """The count of updates, and with a loss scale its three numbers."""
    narrow = config.launch.precision == "fp16" or config.launch.param_fp16
    return FLOAT32 * (4 if narrow else 1)


def _moments(config: Config, trained: Sequence[Weight]) -> int:
    kind = config.optim.optimizer
    if kind == "adafactor":
        return FLOAT32 * sum(sum(matrix_shape(weight.shape)) for weight in trained)
    return FLOAT32 * MOMENTS[kind] * sum(weight.size for weight in trained)


def traffic(
    config: Config, architecture: ModelArchitecture, weights: Sequence[Weight], mesh: Mesh, size: tuple[int, int]
) -> dict[str, int]:
    """Bytes a device sends in a step, by what for; ``size`` (height, width) of the pictures in pixels.

    Counted for rings, which send least: of n devices, (n - 1)/n of the bytes for a ReduceScatter or an AllGather, twice
    that for an AllReduce (Patarasuk and Yuan 2009, 10.1016/j.jpdc.2008.09.002). Gradients and updated weights travel in
    float32, weights of stage 3 in the type of the arithmetic.
    """
    stage, turns = config.parallel.zero_stage, config.optim.gradient_accumulation_steps
    fsdp, data = ((degree - 1) / degree for degree in (mesh.degree("fsdp"), mesh.degree("data")))
    tensor = mesh.degree("tensor")
    weights = [_part(weight, tensor) for weight in weights if weight.trained]
    split = sum(weight.size for weight in weights if stage == 3 and shared(weight))
    whole = sum(weight.size for weight in weights) - split
    if not stage:
        batch = mesh.degree("data", "fsdp")
        found = {"gradients": 2 * (batch - 1) / batch * FLOAT32 * whole}
        if tensor > 1:  # a sum over the devices for each layer, forward and backward
            samples = turns * config.data.per_batch_size
            found["activations"] = (
                2 * (tensor - 1) / tensor * samples * _summed(architecture, size) * _arithmetic(config)
            )
    else:
        times = turns if stage > 1 else 1
        found = {
            "gradients": times * FLOAT32 * (fsdp + 2 * data / mesh.degree("fsdp")) * (whole + split),
            "updated weights": fsdp * FLOAT32 * whole,
            "gathered weights": 2 * turns * fsdp * split * _arithmetic(config),
        }
    return {name: round(count) for name, count in found.items() if count}


def _summed(architecture: ModelArchitecture, size: tuple[int, int]) -> int:
    """Numbers of a sample that axis tensor adds up over its devices: what attention and feed-forward give and take."""
    blocks = layout(architecture.unet, size[0] // 8, size[1] // 8).blocks
    return sum(2 * 3 * block.depth * block.pixels * block.out_channels for block in blocks)


def _arithmetic(config: Config) -> int:
    """Bytes of a number the UNet computes with."""
    return FLOAT32 if config.launch.precision == "fp32" else HALF
