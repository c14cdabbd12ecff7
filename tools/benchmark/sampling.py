"""Time whole pictures - text, guided steps, autoencoder, float32 - of this suite and of diffusers on the same weights.

    python tools/benchmark/sampling.py
    python tools/benchmark/sampling.py --batch_size 1 --size 128 --sample_step 40 --rounds 5

Each runs in a process of its own; one is stopped (SIGSTOP) while the other draws, turn after turn, as in
``training_step.py``. Printed are seconds of the first batch (compilation included), the median of a batch over the
turns, and the peak of resident memory, each with its ratio to diffusers. Every batch has prompts and seeds of its own,
so that nothing is known from before but what is compiled.
"""

import argparse
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training_step import FIGURES, Process, tell

import gm  # noqa: F401  (sets the environment that MindSpore reads)
from gm.config.flags import Parser, positive
from gm.environment import take_allocator
from gm.errors import SuiteError, run_door
from gm.weights.files import open_weights

ROOT = Path(__file__).resolve().parents[2]
WEIGHT = ROOT / "demo/tiny/tiny_sdxl.safetensors"
GUIDANCE = 5.0
Draw = Callable[[int], None]  # the batch of this number


def prompts(number: int, batch_size: int) -> list[str]:
    return [f"a red circle on grey {number} {index}" for index in range(batch_size)]


def suite(options: argparse.Namespace) -> tuple[str, Draw]:
    """This suite's pipeline."""
    import mindspore as ms

    from gm.config.sections.data import ModelConfig
    from gm.data.tokens import Tokenizers
    from gm.diffusion.schedule import alphas_cumprod, betas
    from gm.sampling.pipeline import Pipeline
    from gm.sampling.settings import Request, Settings

    ms.set_context(mode=ms.GRAPH_MODE)
    tokenizers = Tokenizers.of(ModelConfig(weight=options.weight, tokenizer=options.tokenizer))
    pipeline = Pipeline.from_weights(options.weight, tokenizers, alphas_cumprod(betas()))
    size = {"height": options.size, "width": options.size}
    settings = Settings("euler", options.sample_step, guidance_scale=GUIDANCE, vae_tiling="off", **size)

    def draw(number: int) -> None:
        requests = [Request(text, number) for text in prompts(number, options.batch_size)]
        list(pipeline.sample(requests, settings, options.batch_size))

    return f"MindSpore {ms.__version__}", draw


def diffusers(options: argparse.Namespace) -> tuple[str, Draw]:
    """The pipeline of diffusers with eager torch, on the same weights as a diffusers folder."""
    import diffusers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
        options.folder, add_watermarker=False, torch_dtype=torch.float32
    )
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading"
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw(number: int) -> None:
        pipeline(
            prompts(number, options.batch_size),
            num_inference_steps=options.sample_step,
            guidance_scale=GUIDANCE,
            height=options.size,
            width=options.size,
            generator=torch.Generator().manual_seed(number),
        )

    return f"{diffusers.__version__} with torch {torch.__version__}", draw


CONTESTANTS = {"suite": suite, "diffusers": diffusers}


def serve(options: argparse.Namespace) -> None:
    """The measured process: draw one batch, say so, then as many as each line of standard input asks for."""
    if options.serve == "suite":
        take_allocator()  # as demo/sampling_without_streamlit.py does
    with open_weights(options.weight) as weights:
        parameters = sum(math.prod(shape) for shape in weights.shapes().values())
    version, draw = CONTESTANTS[options.serve](options)
    loaded = time.perf_counter()
    draw(0)
    tell({"version": version, "parameters": parameters, "first_seconds": time.perf_counter() - loaded})
    number = 0
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            number += 1
            started = time.perf_counter()
            draw(number)
            seconds.append(time.perf_counter() - started)
        tell({"seconds": seconds, "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6})


def compare(options: argparse.Namespace, shared: list[str]) -> None:
    """Measure in turn and print medians and ratios."""
    from gm.weights.folder import ckpt_to_diffusers

    running: list[Process] = []
    with tempfile.TemporaryDirectory() as place:
        ckpt_to_diffusers(Path(options.weight), Path(place) / "model", tokenizer=Path(options.tokenizer))
        try:
            for name in reversed(CONTESTANTS):
                process = Process(name, sys.executable, "", [*shared, "--folder", f"{place}/model"], script=__file__)
                process.start()
                running.append(process)
            for _ in range(options.rounds):
                for process in running:
                    process.take(options.batches, warm_up=1)
        finally:
            for process in running:
                process.end()
    what = f"{options.batch_size} pictures of {options.size}x{options.size}, {options.sample_step} steps"
    print(f"{what}: medians of {options.rounds} turns of {options.batches}, {len(os.sched_getaffinity(0))} cores")
    for process in running:
        ratios = {figure: process.figures[figure] / running[0].figures[figure] for figure in FIGURES}
        cells = [f"{figure} {process.figures[figure]:.3f} ({ratios[figure]:.2f})" for figure in FIGURES]
        print(f"{process.name}: " + "  ".join(cells))


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--weight", default=str(WEIGHT), help="a whole SDXL model; the shipped tiny one by default")
    parser.add_argument("--tokenizer", default=str(ROOT / "demo/tiny/tokenizer"), help="its vocabulary")
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--size", type=positive, default=64, help="height and width in pixels")
    parser.add_argument("--sample_step", type=positive, default=20)
    parser.add_argument("--batches", type=positive, default=3, help="batches of a turn, after one that does not count")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse(arguments)
    if options.serve:
        serve(options)
        return
    if not Path(options.weight).exists():
        raise SuiteError(f"no such weight file: {options.weight}")
    compare(options, arguments)


if __name__ == "__main__":
    run_door(main)
