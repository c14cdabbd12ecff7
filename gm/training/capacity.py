"""What a recipe takes on 1, 8, 16 and 64 devices, as a table."""

import copy

from gm.config import Config
from gm.models.architecture import ModelArchitecture
from gm.parallel.mesh import Mesh
from gm.training.memory import estimate
from gm.training.prediction import traffic, weights_of

DEVICES = (1, 8, 16, 64)
SERVER = 8  # devices in one
HEAD = (
    "| devices | mesh | ZeRO stage | weights | gradients | optimizer, average | activations: all kept "
    "| transformers recomputed | all blocks recomputed | together | sent in a step |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def table(config: Config, architecture: ModelArchitecture, room: float) -> str:
    """A row for every number of devices and stage; GB of a device of ``room`` GB.

    "Together" is with the least recomputation that fits. Axis fsdp is a server, axis data goes over the servers.
    """
    rows = []
    for devices in DEVICES:
        for stage in (0, 1, 2, 3) if devices > 1 else (0,):
            chosen = copy.deepcopy(config)
            chosen.parallel.zero_stage = stage
            if stage:
                chosen.parallel.ici_fsdp_parallelism = SERVER
            rows.append(_row(chosen, architecture, Mesh.of(chosen.parallel, devices), room))
    return HEAD + "".join(rows)


def _row(config: Config, architecture: ModelArchitecture, mesh: Mesh, room: float) -> str:
    side, weights = config.data.resolution, weights_of(config, architecture)
    needs, activations = {}, []
    for kind in ("none", "transformer", "all"):
        config.train.recompute = kind
        needs[kind] = estimate(config, architecture, weights, (side, side), mesh)
        activations.append(f"{needs[kind]['activations'] / 1e9:.1f}")
    fitting = [kind for kind, found in needs.items() if sum(found.values()) <= room * 1e9]
    found = needs[fitting[0] if fitting else "all"]
    total = f"{sum(found.values()) / 1e9:.1f}"
    words = {"none": "", "transformer": ", transformers recomputed", "all": ", all recomputed"}
    state = found["optimizer"] + found.get("moving average", 0)
    cells = [
        mesh.size,
        mesh.describe(),
        config.parallel.zero_stage,
        f"{(found['weights'] + found.get('casts', 0)) / 1e9:.1f}",
        f"{found['gradients'] / 1e9:.1f}",
        f"{state / 1e9:.1f}",
        *activations,
        f"{total}{words[fitting[0]]}" if fitting else f"{total}: does not fit",
        f"{sum(traffic(config, architecture, weights, mesh, (side, side)).values()) / 1e9:.1f}"
        if mesh.size > 1
        else "-",
    ]
    return f"| {' | '.join(map(str, cells))} |\n"
