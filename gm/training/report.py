"""What a run will do and take, told before its first step."""

import logging
from collections.abc import Sequence

import mindspore as ms

from gm.config import Config
from gm.data.batches import Batches, encodes_in_step
from gm.data.noising import describe
from gm.models.architecture import ModelArchitecture
from gm.parallel.mesh import Mesh
from gm.parallel.world import World
from gm.training.assemble import Parts, architecture_to_train
from gm.training.memory import estimate, weights_of_run
from gm.training.prediction import Weight, traffic, weights_of

log = logging.getLogger(__name__)


def report(
    config: Config, architecture: ModelArchitecture, parts: Parts, batches: Batches, world: World | None = None
) -> None:
    """Say what will be trained, on what, and what it takes."""
    mesh = Mesh() if world is None else world.mesh
    samples = config.data.per_batch_size * config.optim.gradient_accumulation_steps * mesh.degree("data", "fsdp")
    weights = weights_of_run(parts)
    epochs = config.train.max_train_steps / batches.steps_per_epoch
    tell_devices(config, weights, mesh)
    log.info("objective: %s", describe(config.diffusion))
    log.info("latents and text states: %s", source(config))
    log.info(
        "%d steps of %d samples: %.1f epochs of %d steps",
        config.train.max_train_steps,
        samples,
        epochs,
        batches.steps_per_epoch,
    )
    sizes = ", ".join(f"{width}x{height}" for height, width in batches.sizes)
    log.info("pictures of %s: %s", sizes, compilations(parts, len(batches.sizes)))
    tell_needs(config, architecture, weights, mesh, max(batches.sizes, key=lambda size: size[0] * size[1]))


def predict(config: Config) -> None:
    """Say what training on ``--dry_run_devices`` would take of each; of the weights only the names are read.

    Raises:
        SuiteError: no such weights, or no UNet among them; degrees that do not make up the devices.
    """
    architecture = architecture_to_train(config)
    mesh = Mesh.of(config.parallel, config.parallel.dry_run_devices)
    weights, side = weights_of(config, architecture), config.data.resolution
    tell_devices(config, weights, mesh)
    for kind in dict.fromkeys((config.train.recompute, "none", "transformer", "all")):
        config.train.recompute = kind
        log.info("%dx%d pictures, --recompute %s:", side, side, kind)
        tell_needs(config, architecture, weights, mesh, (side, side))


def tell_devices(config: Config, weights: Sequence[Weight], mesh: Mesh) -> None:
    """How much is trained on how many devices."""
    if mesh.size > 1:
        log.info("%d devices: %s, ZeRO stage %d", mesh.size, mesh.describe(), config.parallel.zero_stage)
    log.info("training %s parameters", f"{sum(weight.size for weight in weights if weight.trained):,}")


def tell_needs(
    config: Config, architecture: ModelArchitecture, weights: Sequence[Weight], mesh: Mesh, largest: tuple[int, int]
) -> None:
    """What each device of the mesh takes and sends."""
    needs = estimate(config, architecture, weights, largest, mesh)
    listed = ", ".join(f"{name} {size(count)}" for name, count in needs.items())
    more = ", and 1 to 2 GB for the process and compiling" if ms.get_context("device_target") == "CPU" else ""
    log.info("memory of a device, estimated: %s; together %s%s", listed, size(sum(needs.values())), more)
    if mesh.size > 1:
        sent = traffic(config, architecture, weights, mesh, largest)
        told = ", ".join(f"{name} {size(count)}" for name, count in sent.items())
        log.info("a device sends in a step: %s; together %s", told, size(sum(sent.values())))


def compilations(parts: Parts, sizes: int) -> str:
    """How often the step will be compiled: once for each picture size, and the rest of it once."""
    count = sizes + len(parts.graphs) - 1
    return f"{count} compilation{'s' * (count > 1)} of the step to come"


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def source(config: Config) -> str:
    """Where the step has its latents and text states from."""
    if config.cache.latent:
        return f"from the cache {config.cache.path}"
    if not encodes_in_step(config):
        return "encoded as the run goes, in graphs of their own (--multi_graph)"
    trained = ", and the text encoders are trained" if config.train.text_encoders else ""
    return f"encoded as the run goes, in the graph of the step{trained}"
