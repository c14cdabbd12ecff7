"""CLIP score of a folder of pictures: how well each shows its prompt.

    python tools/eval/clip_score.py --weight clip-vit-large-patch14 --data_path outputs/demo

The prompts are those the sampler wrote into its PNGs, or captions as training reads them, or --prompt. Prints a table
and writes clip_score.json into the folder.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser, positive
from gm.errors import run_door


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--weight", metavar="CLIP", required=True, help="a CLIP as the hub has it: folder or .safetensors"
    )
    parser.add_argument("--data_path", metavar="FOLDER", required=True, help="the pictures")
    parser.add_argument("--prompt", metavar="TEXT|FILE", default="", help="one prompt for all, or a file, one a line")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="CLIP's vocab.json and merges.txt, if not beside its weights"
    )
    parser.add_argument("--batch_size", type=positive, default=8, metavar="N", help="pictures at once (default 8)")
    parser.add_argument("--save_path", metavar="FILE", help="default: clip_score.json in the folder")
    values = parser.parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from gm.config.schema import LaunchConfig
    from gm.launch import start

    start(LaunchConfig())
    from gm.evaluation import pictures
    from gm.evaluation.clip_score import ClipScorer

    folder = Path(values.data_path)
    scorer = ClipScorer.load(values.weight, values.tokenizer, values.batch_size)
    scores, found = pictures.score_folder(scorer, folder, values.prompt)
    names, prompts = [one.name for one in found], [one.prompt for one in found]
    print("\n".join(pictures.table(scores, names, prompts)))
    target = Path(values.save_path or folder / pictures.CLIP_SCORES)
    pictures.write_scores(target, scores, names, prompts, values.weight)
    print(f"wrote {target}")


if __name__ == "__main__":
    run_door(main)
