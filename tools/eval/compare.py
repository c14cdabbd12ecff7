"""Checkpoints side by side, to choose the best step: pictures of the same prompts and seeds, and their scores.

    python tools/eval/compare.py --config runs/my_run/config.yaml --checkpoints runs/my_run --prompt prompts.txt \\
        --eval_data_path held_out --validation_clip_weight clip-vit-large-patch14 --save_path outputs/compare

--checkpoints takes files (what training saves, or whole models) and folders of runs; autoencoder and text encoders are
those of --weight. Leaves in --save_path: compare.md and compare.json, grid.png (a row for each prompt and seed, a
column for each checkpoint), eval_loss.png, and the pictures of each checkpoint in a folder of its own.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config import load_evaluation
from gm.errors import run_door


def main(arguments: list[str]) -> None:
    config, checkpoints = load_evaluation(arguments, "outputs/compare", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from gm.evaluation.run import compare

    print("\n".join(compare(config, checkpoints)))


if __name__ == "__main__":
    run_door(main)
