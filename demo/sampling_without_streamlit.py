"""Draw pictures from prompts with trained weights.

    python demo/sampling_without_streamlit.py --weight merged.ckpt --prompt "your prompt"
    python demo/sampling_without_streamlit.py --config configs/inference/tiny_sdxl.yaml --prompt prompts.txt --seed 7
    python demo/sampling_without_streamlit.py --weight merged.ckpt --prompt "..." --task img2img --img in.png

Leaves in --save_path: a PNG for each picture with its settings inside, contact_sheet.png and manifest.json.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.config import load
from gm.environment import take_allocator
from gm.errors import run_door

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "inference" / "sd_xl_base.yaml"


def main(arguments: list[str]) -> None:
    if not any(argument.partition("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    config = load(arguments, door="sample", usage=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from gm.sampling.run import run

    run(config)


if __name__ == "__main__":
    take_allocator()
    run_door(main)
