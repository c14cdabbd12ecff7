"""Lay trained weights over a whole model, so that it can be sampled from or handed on.

    python tools/weight_merge/merge_weight.py --base_weight checkpoints/sd_xl_base_1.0_ms.ckpt \\
        --additional_weights runs/my_run/weights/unet_1000.ckpt --save_path checkpoints/merged.ckpt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import run_door
from gm.weights.dtypes import FLAG_TAGS
from gm.weights.merge import merge


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--base_weight", metavar="FILE", required=True, help=".ckpt, .safetensors or diffusers folder")
    parser.add_argument(
        "--additional_weights", metavar="FILE", nargs="+", required=True, help="what replaces parts of the base"
    )
    parser.add_argument("--save_path", metavar="FILE", help="the result (default: beside the base, *_merged.ckpt)")
    parser.add_argument(
        "--dtype", choices=FLAG_TAGS, default="keep", help="number format of the result (default keep: the base's)"
    )
    parser.add_argument("--dry_run", action="store_true", help="check and report, write nothing")
    values = parser.parse(arguments)
    report = merge(
        values.base_weight, values.additional_weights, values.save_path, values.dry_run, FLAG_TAGS[values.dtype]
    )
    for line in report.lines():
        print(line)
    print(f"would write {report.save_path}" if values.dry_run else f"wrote {report.save_path}")


if __name__ == "__main__":
    run_door(main)
