"""What is this weight file: its architecture, parts, number formats, key layout, and what is missing.

python tools/model_conversion/inspect_weight.py sd_xl_base_1.0.safetensors
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import run_door
from gm.weights.files import open_weights
from gm.weights.report import check_values, report


def main(arguments: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("weight", metavar="FILE_OR_FOLDER", help=".ckpt, .safetensors or diffusers folder")
    parser.add_argument("--values", action="store_true", help="read every value and report NaN and infinite ones")
    values = parser.parse(arguments)
    with open_weights(values.weight) as weights:
        lines, whole = report(weights)
        print("\n".join(lines), flush=True)
        if values.values:
            broken = check_values(weights)
            whole = whole and not broken
            print("\n".join(broken or [f"{'values':<15}all finite"]))
    return 0 if whole else 1


if __name__ == "__main__":
    run_door(main)
