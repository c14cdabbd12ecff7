"""How much memory a run takes: estimated before, measured during."""

import math
import resource
import sys
from collections.abc import Sequence

import mindspore as ms

from gm.config import Config
from gm.models.architecture import HEAD_WIDTH, ModelArchitecture, UNetArchitecture
from gm.models.flops import CONTEXT_LENGTH, layout
from gm.parallel.mesh import Mesh
from gm.training.assemble import Parts
from gm.training.prediction import FLOAT32, HALF, Weight, persistent
from gm.weights.keys import AUTOENCODER, UNET, expected_shapes

# What the backward pass works with comes on top of what the forward pass left for it. Measured on the CPU with the slim
# network of tools/benchmark: from latents of 32x32 to 64x64 a step's memory grew by 2.05 GB, what is left by 1.14 GB.
BACKWARD = 1.8


def estimate(
    config: Config,
    architecture: ModelArchitecture,
    weights: Sequence[Weight],
    size: tuple[int, int],
    mesh: Mesh | None = None,
) -> dict[str, int]:
    """Bytes a device of a mesh needs, by what for; ``size`` (height, width) in pixels of the largest pictures.

    All is exact but the activations, and with ``--zero_stage`` 2 and 3 the gradients. On the CPU the process itself and
    compiling come on top.
    """
    launch, mesh = config.launch, mesh or Mesh()
    held = persistent(config, weights, mesh)
    count = sum(weight.size for weight in weights)
    if config.parallel.zero_stage == 3:
        count //= mesh.degree("fsdp")
    encodes_pictures = not config.cache.latent or config.validation.infer_during_train
    encodes_texts = not (config.cache.text_embedding or config.train.text_encoders)
    frozen = 0
    for name, shape in expected_shapes(architecture).items():
        needed = encodes_pictures if name.startswith(AUTOENCODER) else encodes_texts
        if needed and not name.startswith(UNET):
            frozen += math.prod(shape)
    kept = activations(architecture.unet, size[0] // 8, size[1] // 8, config.train.recompute)
    kept *= config.data.per_batch_size * (FLOAT32 if launch.precision == "fp32" else HALF)
    found = {
        "weights": held.weights,
        "casts": 0 if launch.precision == "fp32" or launch.param_fp16 else HALF * count,
        "gradients": held.gradients + held.sums,
        "optimizer": held.optimizer,
        "moving average": held.average,
        "frozen networks": FLOAT32 * frozen,
        "activations": round(BACKWARD * kept),
    }
    return {name: count for name, count in found.items() if count}


def weights_of_run(parts: Parts) -> list[Weight]:
    """What is trained and kept, whole, whether this device has it whole or not."""
    trained = {parameter.name for parameter in parts.optimizer.trained}
    whole = {} if parts.layout is None else parts.layout.whole_shapes
    return [
        Weight(weight.name, whole.get(weight.name, tuple(weight.shape)), weight.itemsize, weight.name in trained)
        for weight in parts.weights
    ]


def activations(arch: UNetArchitecture, height: int, width: int, recompute: str = "none") -> int:
    """Numbers that one sample's forward pass leaves for the backward pass; ``height`` and ``width`` of the latents.

    Counted from the formulas of ``gm.models.unet``: the inputs of every convolution, linear layer, norm and activation,
    and the scores of attention before and after the softmax. Of a recomputed block its input, and once the largest one.
    """
    whole = layout(arch, height, width)
    kept = sum(pixels * channels for pixels, _, channels in whole.convolutions)
    again = [0]
    for block in whole.blocks:
        # the joined input, its norm and activation; first convolution, with the time, norm, activation, sum
        residual = block.pixels * (3 * block.in_channels + 5 * block.out_channels)
        if recompute == "all":
            kept += block.pixels * block.in_channels
            again.append(residual)
        else:
            kept += residual
        if block.depth:
            heads = arch.num_heads or block.out_channels // HEAD_WIDTH
            linear = (11 + 7 + 27) * block.out_channels  # self-attention, cross-attention, gated feed-forward
            transformer = block.pixels * (linear + 2 * heads * (block.pixels + CONTEXT_LENGTH))
            kept += block.pixels * 4 * block.out_channels
            if recompute == "none":
                kept += block.depth * transformer
            else:
                kept += block.depth * block.pixels * block.out_channels
                again.append(transformer)
    return kept + max(again)


def peak_bytes() -> int:
    """The most memory taken so far: of the device; on the CPU, of this process.

    On Ascend it is what MindSpore's allocator gave out at once (``mindspore.runtime.max_memory_allocated``).
    """
    if ms.get_context("device_target") == "CPU":
        return _process_peak()
    return int(ms.runtime.max_memory_allocated())


def _process_peak() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux; a process starts with its parent's peak there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
