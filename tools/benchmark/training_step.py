"""Time the training step on random data: compile seconds, seconds a step, peak memory.

    python tools/benchmark/training_step.py --model tiny
    python tools/benchmark/training_step.py --model slim --pythons A/bin/python B/bin/python --rounds 3

With ``--pythons`` the measurement runs in each of these environments in turn, round after round, so that a machine
whose speed drifts is as fair to one as to the other; medians over the rounds are printed, and ratios to the first.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.errors import SuiteError, run_door
from gm.models.architecture import TINY_SDXL, UNetArchitecture

SLIM = UNetArchitecture(  # 64 million parameters; every kind of block of SDXL's UNet
    channels=(128, 256, 512),
    down_depths=((0, 0), (2, 2), (2, 2)),
    mid_depth=2,
    up_depths=((2, 2, 2), (2, 2, 2), (0, 0, 0)),
    context_dim=768,
    vector_dim=512 + 6 * 256,
)
MODELS = {"tiny": (TINY_SDXL.unet, 8, 16), "slim": (SLIM, 32, 1)}  # architecture, side of the latents, batch
FIGURES = ("compile_seconds", "step_seconds", "peak_gigabytes")


def measure(model: str, steps: int) -> dict[str, float | str]:
    """Figures of this process: the whole step, AdamW and clipping included, in float32 and graph mode."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from gm.models.build import build_unet
    from gm.training.adamw import AdamW
    from gm.training.loss import BATCH_FIELDS, DiffusionLoss
    from gm.training.step import TrainStep, tensors

    ms.set_context(mode=ms.GRAPH_MODE)
    architecture, side, batch = MODELS[model]
    rng = np.random.default_rng(0)
    shapes = {
        "moments": (8, side, side),
        "posterior_noise": (4, side, side),
        "noise": (4, side, side),
        "input_noise": (4, side, side),
        "context": (77, architecture.context_dim),
        "pooled": (architecture.vector_dim - 6 * 256,),
        "time_ids": (6,),
    }
    arrays = tensors({name: rng.normal(size=(batch, *shapes.get(name, ()))) for name in BATCH_FIELDS})
    unet = build_unet(architecture, seed=0)
    step = TrainStep(DiffusionLoss(unet, 0.13025), AdamW(unet.trainable_params()), max_grad_norm=1.0)
    step.set_train()
    lr = Tensor(1e-5, ms.float32)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step(lr, *arrays)[0].asnumpy()
        seconds.append(time.perf_counter() - started)
    return {
        "mindspore": ms.__version__,
        "compile_seconds": seconds[0],
        "step_seconds": statistics.median(seconds[1:]),
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def compare(pythons: list[str], model: str, steps: int, rounds: int) -> None:
    """Measure in each environment in turn and print medians and ratios."""
    found: dict[str, list[dict]] = {python: [] for python in pythons}
    for turn in range(rounds):
        for python in pythons:
            command = [python, __file__, "--model", model, "--steps", str(steps), "--json"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SuiteError(f"{python} failed: {done.stderr.strip().splitlines()[-1]}")
            found[python].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {turn + 1}: {found[python][-1]}", file=sys.stderr)
    first = None
    print(f"{model}: medians of {rounds} rounds of {steps} steps; in brackets the ratio to the first row")
    for runs in found.values():
        medians = {figure: statistics.median(run[figure] for run in runs) for figure in FIGURES}
        first = first or medians
        cells = [f"{figure} {medians[figure]:.3f} ({medians[figure] / first[figure]:.2f})" for figure in FIGURES]
        print(f"MindSpore {runs[0]['mindspore']}: " + "  ".join(cells))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--steps", type=int, default=20, help="steps to take the median of")
    parser.add_argument("--pythons", nargs="*", default=[], help="interpreters of the environments to compare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.pythons:
        compare(options.pythons, options.model, options.steps, options.rounds)
        return
    figures = measure(options.model, options.steps)
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            "  ".join(
                f"{name} {value:.3f}" if name in FIGURES else f"{name} {value}" for name, value in figures.items()
            )
        )


if __name__ == "__main__":
    run_door(main)
