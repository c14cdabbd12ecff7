"""Make the tiny SDXL from nothing: draw its world, train its autoencoder, train its UNet, write one float16 file.

    python -m demo.tiny.make_tiny_sdxl              # leaves demo/tiny/tiny_sdxl.safetensors

The autoencoder has a trainer of its own (``demo/tiny/train_autoencoder.py``); the UNet is trained by the suite's public
commands, printed before they run. The text towers keep random weights: in a world of twenty words it is enough that
every word has a state of its own. Phases whose result is there are not run again, so it goes on after an interruption.
"""

import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.tiny import world
from gm.config.flags import Parser
from gm.errors import SuiteError, run_door

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "configs/training/tiny_sdxl_from_nothing.yaml"
PICTURES, SEED = 6000, 0
# CLIP begins its token embeddings at a spread of 0.02 and learns to tell words apart; towers that never learn need
# words that outweigh the positions and layers from the start.
WORDS_GAIN = 16.0


def run(*command: str) -> None:
    print("$ " + shlex.join(("python", *command)), flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise SuiteError(f"{command[0]} failed; mend what it says above and run the same command again")


def write_untrained(autoencoder: Path, save_path: Path) -> None:
    """One checkpoint of the trained autoencoder, random text towers and an untrained UNet."""
    from gm.models.architecture import TINY_SDXL
    from gm.models.build import build_autoencoder, build_conditioner, build_unet
    from gm.weights.files import open_weights
    from gm.weights.load import load_into, write_parameters

    trained = build_autoencoder(TINY_SDXL.autoencoder)
    with open_weights(autoencoder) as weights:
        load_into(trained, weights)
    towers = build_conditioner(TINY_SDXL, seed=SEED)
    for parameter in towers.get_parameters():
        if "token_embedding" in parameter.name:
            parameter.set_data(parameter * WORDS_GAIN)
    unet = build_unet(TINY_SDXL.unet, seed=SEED)
    write_parameters(save_path, [p for network in (unet, towers, trained) for p in network.get_parameters()])


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of everything in between")
    parser.add_argument("--save_path", type=Path, default=Path("demo/tiny/tiny_sdxl.safetensors"))
    options = parser.parse(arguments)
    out = options.out
    autoencoder, untrained, pictures = out / "autoencoder.ckpt", out / "untrained.ckpt", out / "pictures"
    cache, whole = out / "cache", out / "tiny_sdxl.ckpt"
    if not autoencoder.exists():
        run("-m", "demo.tiny.train_autoencoder", "--save_path", str(autoencoder))
    if not untrained.exists():
        write_untrained(autoencoder, untrained)
    if not (pictures / f"{PICTURES - 1:04d}.png").exists():
        world.write_folder(pictures, world.base_world(PICTURES, SEED))
    recipe = ("train.py", "--config", RECIPE, "--weight", str(untrained), "--data_path", str(pictures))
    recipe = (*recipe, "--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", str(cache))
    run(*recipe, "--task", "cache")
    unets = out / "unet" / "weights"
    if not list(unets.glob("unet_ema_*.ckpt")):
        run(*recipe, "--save_path", str(out), "--run_name", "unet", "--save_path_with_time", "False")
    trained = max(unets.glob("unet_ema_*.ckpt"), key=lambda path: path.stat().st_mtime)
    merge = ("tools/weight_merge/merge_weight.py", "--base_weight", str(untrained))
    run(*merge, "--additional_weights", str(trained), "--save_path", str(whole))
    convert = ("tools/model_conversion/convert_weight.py", "--task", "ms_to_st", "--dtype", "fp16")
    run(*convert, "--weight_ms", str(whole), "--weight_safetensors", str(options.save_path))


if __name__ == "__main__":
    run_door(main)
