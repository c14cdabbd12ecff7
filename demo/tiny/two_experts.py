"""Two experts against one model on the tiny world: the same total training, the same prompts and seeds, the same judge.

    python -m demo.tiny.two_experts    # leaves runs/two_experts/{report.json,grid.png}; about 20 minutes on one core

The shipped tiny SDXL first learns to predict v with zero terminal SNR (``--start_steps``, on the quickstart's
pictures). From there one model is trained on all timesteps for ``--steps`` more, and so is each of two experts on its
own, on as many of the pictures of every step as it has of the schedule: all in all they see as many as the one model,
and every timestep as often. Every phase is a public command, printed before it runs; phases whose result is there are
not run again, and an interrupted training goes on.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.tiny import world
from demo.tiny.judge import judge
from gm.config.flags import Parser, positive
from gm.errors import SuiteError, run_door
from gm.files import replacing, write_json, write_text
from gm.sampling.output import contact_sheet

ROOT = Path(__file__).resolve().parents[2]
BASE = "demo/tiny/tiny_sdxl.safetensors"
STRENGTH = 0.35  # of configs/training/two_experts.yaml: the second stage's share
BATCH = 16  # of configs/training/tiny_sdxl.yaml
SECOND = round(STRENGTH * BATCH)
BATCHES = {"start": BATCH, "one_model": BATCH, "stage_one": BATCH - SECOND, "stage_two": SECOND}
ONE_MODEL = ("configs/training/tiny_sdxl.yaml", "--prediction_type", "v_prediction", "--rescale_betas_zero_snr")
RECIPES = {
    "start": ONE_MODEL,
    "one_model": ONE_MODEL,
    "stage_one": ("configs/training/tiny_sdxl_stage_one.yaml",),
    "stage_two": ("configs/training/tiny_sdxl_stage_two.yaml",),
}
DRAWN_AS = ("--prediction_type", "v_prediction", "--rescale_betas_zero_snr", "True")
DRAWN_AS += ("--timestep_spacing", "trailing", "--guidance_scale", "4", "--guidance_rescale", "0.7")
FIRST_SEED, SEEDS = 1000, 12
SHOWN = 8  # prompts in the grid


def base(name: str, out: Path) -> str:
    """The whole model that a training starts from."""
    return BASE if name == "start" else str(out / "start.ckpt")


def recipe(name: str, out: Path, steps: int) -> tuple[str, ...]:
    """The command of a training, from its beginning."""
    words = ("train.py", "--config", *RECIPES[name], "--weight", base(name, out), "--data_path", str(out / "pictures"))
    words += ("--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", str(out / "cache"))
    words += ("--per_batch_size", str(BATCHES[name]), "--max_train_steps", str(steps))
    words += ("--save_path", str(out), "--run_name", name)
    words += ("--compile_cache", str(out / "graphs"))  # the graph is the same for both of 16 pictures
    words += ("--validation_using_datasets", "False")  # it would only take time here
    return words


def train(name: str, out: Path, steps: int) -> tuple[str, ...]:
    """The command that trains, or goes on training."""
    words = recipe(name, out, steps)
    return (*words, "--resume", "latest") if (out / name / "latest").exists() else words


def merge(name: str, out: Path, steps: int) -> tuple[str, ...]:
    """The command that puts a trained UNet into the whole model."""
    trained = out / name / "weights" / f"unet_{steps}.ckpt"
    words = ("tools/weight_merge/merge_weight.py", "--base_weight", base(name, out))
    words += ("--additional_weights", str(trained))
    return (*words, "--save_path", str(out / f"{name}.ckpt"))


def sample(out: Path, weight: str, folder: str, *more: str) -> tuple[str, ...]:
    """The command that draws all prompts."""
    words = ("demo/sampling_without_streamlit.py", "--config", "configs/inference/tiny_sdxl.yaml", *DRAWN_AS)
    words += ("--weight", str(out / weight), *more, "--prompt", str(out / "prompts.txt"))
    return (*words, "--num_images", str(SEEDS), "--save_path", str(out / folder))


def run(command: Sequence[str], result: Path) -> None:
    """Run a command unless its result is there."""
    if result.exists():
        return
    call(command)
    if not result.exists():
        raise SuiteError(f"{command[0]} ended without {result}: run the same command again to go on")


def call(command: Sequence[str]) -> None:
    print("$ " + shlex.join(("python", *command)), flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise SuiteError(f"{command[0]} failed; mend what it says above and run the same command again")


def prompts() -> list[world.Prompt]:
    """Those of the quickstart: what fine-tuning teaches, and what the base knew."""
    taught, kept = world.evaluation_prompts()
    return [*taught, *kept]


def counted(folder: Path, wanted: Sequence[world.Prompt]) -> dict:
    """How many of a folder's pictures, ``SEEDS`` in a row for each prompt, show what their prompt says.

    ``right`` of ``pictures``, and the parts of it: ``colour``, ``shape``.
    """
    pictures = sorted(folder.glob("*_seed*.png"))
    if len(pictures) != SEEDS * len(wanted):
        raise SuiteError(f"{folder} has {len(pictures)} pictures, not {SEEDS * len(wanted)}: remove it and run again")
    found = {"pictures": len(pictures), "right": 0, "colour": 0, "shape": 0}
    for index, path in enumerate(pictures):
        prompt = wanted[index // SEEDS]
        with Image.open(path) as picture:
            verdict = judge(picture)
        colour, shape = verdict.colour == prompt.colour, verdict.shape == prompt.shape
        found["colour"] += colour
        found["shape"] += shape
        found["right"] += colour and shape
    return found


def draw_grid(out: Path, folders: Sequence[str], wanted: Sequence[world.Prompt]) -> None:
    """Some prompts, one row each: a picture of each folder, the same seed."""
    cells, labels = [], []
    for number in range(0, len(wanted), max(1, len(wanted) // SHOWN)):
        for folder in folders:
            path = sorted((out / folder).glob("*_seed*.png"))[SEEDS * number]
            with Image.open(path) as picture:
                cells.append(picture.convert("RGB"))
            labels.append(f"{folder.removeprefix('drawn_')}: {wanted[number].text}")
    with replacing(out / "grid.png") as file:
        contact_sheet(cells, labels, len(folders)).save(file, format="PNG")


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/two_experts"), help="folder of everything it makes")
    parser.add_argument("--start_steps", type=positive, default=700, help="of what both sides start from (default 700)")
    parser.add_argument("--steps", type=positive, default=400, help="of training from there, each side (default 400)")
    options = parser.parse(arguments)
    out, wanted = options.out, prompts()
    steps = {name: options.start_steps if name == "start" else options.steps for name in RECIPES}
    if not (out / "pictures").exists():
        # What the figures of docs/two_stage.md were taken with.
        world.write_folder(out / "pictures", world.finetune_set(seed=0, kept=160))
    write_text(out / "prompts.txt", "".join(f"{p.text} --d {FIRST_SEED + SEEDS * i}\n" for i, p in enumerate(wanted)))
    for name, count in steps.items():
        trained = out / name / "weights" / f"unet_{count}.ckpt"
        if not trained.exists():
            call((*recipe(name, out, count), "--task", "cache"))  # what is there is not made again
        run(train(name, out, count), trained)
        run(merge(name, out, count), out / f"{name}.ckpt")
    run(sample(out, "one_model.ckpt", "drawn_one_model"), out / "drawn_one_model" / "manifest.json")
    experts = ("--stage2_weight", str(out / "stage_two.ckpt"), "--denoising_end", str(1 - STRENGTH))
    run(sample(out, "stage_one.ckpt", "drawn_experts", *experts), out / "drawn_experts" / "manifest.json")
    folders = ("drawn_one_model", "drawn_experts")
    draw_grid(out, folders, wanted)
    report = {
        "steps": steps,
        "pictures_a_step": BATCHES,
        "one_model": counted(out / folders[0], wanted),
        "experts": counted(out / folders[1], wanted),
    }
    write_json(out / "report.json", report)
    for name in ("one_model", "experts"):
        result = report[name]
        print(f"{name}: {result['right']} of {result['pictures']} pictures right", end="")
        print(f" (colour {result['colour']}, shape {result['shape']})")
    print(f"  {out / 'grid.png'}\n  {out / 'report.json'}")


if __name__ == "__main__":
    run_door(main)
