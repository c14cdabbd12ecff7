"""Checkpoints of the tiny world side by side, judged as well: ``tools/eval/compare.py`` with one more column.

    python -m demo.tiny.compare --config runs/quickstart/finetune/config.yaml --checkpoints runs/quickstart/finetune \\
        --prompt runs/quickstart/prompts.txt --save_path runs/quickstart/compare

Prompts must name a colour and a shape of the world.
"""

import logging
import sys
from collections.abc import Sequence

from PIL import Image

from demo.tiny import world
from demo.tiny.judge import matches
from gm.config import load_evaluation
from gm.errors import UsageError, run_door


def share(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> float:
    """The part of the pictures that show the colour and the shape their prompts name, 0 to 1.

    Raises:
        UsageError: a prompt names none.
    """
    return sum(matches(picture, *named(prompt)) for picture, prompt in zip(pictures, prompts)) / len(pictures)


def named(prompt: str) -> tuple[str, str]:
    """The colour and the shape that a prompt names."""
    words = prompt.lower().split()
    colours, shapes = ([word for word in words if word in known] for known in (world.COLOURS, world.SHAPES))
    if not colours or not shapes:
        raise UsageError(f"prompt {prompt!r} names no colour and shape of the tiny world: see demo/tiny/world.py")
    return colours[0], shapes[0]


def main(arguments: list[str]) -> None:
    config, checkpoints = load_evaluation(arguments, "outputs/compare", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from gm.evaluation.run import compare

    print("\n".join(compare(config, checkpoints, {"right": share})))


if __name__ == "__main__":
    run_door(main)
