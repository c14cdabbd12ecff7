"""Convert weights between the original single file, MindSpore's .ckpt and a diffusers folder.

    python tools/model_conversion/convert_weight.py --task st_to_ms \\
        --weight_safetensors sd_xl_base_1.0.safetensors --weight_ms checkpoints/sd_xl_base_1.0_ms.ckpt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import UsageError, run_door
from gm.weights.convert import ckpt_to_safetensors, safetensors_to_ckpt
from gm.weights.dtypes import FLAG_TAGS
from gm.weights.folder import ckpt_to_diffusers, diffusers_to_ckpt

# task: what it does, the flag of its input, the flag of its output
TASKS = {
    "st_to_ms": (safetensors_to_ckpt, "weight_safetensors", "weight_ms"),
    "ms_to_st": (ckpt_to_safetensors, "weight_ms", "weight_safetensors"),
    "diffusers_to_ms": (diffusers_to_ckpt, "weight_diffusers", "weight_ms"),
    "ms_to_diffusers": (ckpt_to_diffusers, "weight_ms", "weight_diffusers"),
}


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--task", choices=TASKS, required=True, help="from which layout to which")
    parser.add_argument("--weight_safetensors", metavar="FILE", help="original single file, .safetensors")
    parser.add_argument("--weight_ms", metavar="FILE", help="MindSpore file, .ckpt (names original or MindONE's)")
    parser.add_argument("--weight_diffusers", metavar="FOLDER", help="diffusers folder (with model_index.json)")
    parser.add_argument("--dtype", choices=FLAG_TAGS, default="keep", help="number format of the result (default keep)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="ms_to_diffusers: tokenizer files to put into the folder")
    values = parser.parse(arguments)
    convert, source, target = TASKS[values.task]
    for flag in (source, target):
        if not getattr(values, flag):
            raise UsageError(f"--task {values.task} needs --{flag}")
    options = {"dtype": FLAG_TAGS[values.dtype]}
    if values.tokenizer and values.task != "ms_to_diffusers":
        raise UsageError("--tokenizer goes with --task ms_to_diffusers: leave it out")
    if values.task == "ms_to_diffusers":
        options["tokenizer"] = values.tokenizer
    convert(getattr(values, source), getattr(values, target), **options)
    print(f"wrote {getattr(values, target)}")


if __name__ == "__main__":
    run_door(main)
