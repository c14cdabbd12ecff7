"""The stable evaluation loss of weights: at each of a few timesteps, always with the same noise, and its mean.

    python tools/eval/eval_loss.py --config runs/my_run/config.yaml --data_path held_out --checkpoints runs/my_run
    python tools/eval/eval_loss.py --weight sd_xl_base_1.0.safetensors --data_path held_out

--checkpoints takes files (what training saves, or whole models) and folders of runs; without it --weight itself is
measured. --data_path is a folder of pictures and captions that were not trained on. Leaves in --save_path:
eval_loss.png, one curve for each, and eval_loss.json.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config import load_evaluation
from gm.errors import run_door


def main(arguments: list[str]) -> None:
    config, checkpoints = load_evaluation(arguments, "outputs/eval_loss", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from gm.evaluation.run import eval_loss

    print("\n".join(eval_loss(config, checkpoints)))


if __name__ == "__main__":
    run_door(main)
