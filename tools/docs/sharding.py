"""Write the table of what SDXL takes on 1 to 64 NPUs into docs/distributed.md, as ``--dry_run`` counts it.

python tools/docs/sharding.py            # rewrite the part between the two markers
python tools/docs/sharding.py --check    # only say whether it is up to date: exit code 1 if not
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gm.config import load  # noqa: E402
from gm.config.validation import memory_in_gigabytes  # noqa: E402
from gm.errors import run_door  # noqa: E402
from gm.generated import between, write_or_check  # noqa: E402

PAGE = ROOT / "docs" / "distributed.md"
BEGIN, END = "<!-- sharding: made by tools/docs/sharding.py -->", "<!-- end of sharding -->"
RECIPE = ["--config", str(ROOT / "configs" / "training" / "sd_xl_base_finetune_910b.yaml"), "--data_path", "D"]
RECIPE += ["--param_fp16", "True", "--use_ema", "True"]


def updated(page: str) -> str:
    """The page with today's table between its markers."""
    from gm.models.architecture import ModelArchitecture
    from gm.training.capacity import table

    config = load(RECIPE)
    found = table(config, ModelArchitecture(), memory_in_gigabytes(config.launch.max_device_memory))
    return between(page, BEGIN, END, found)


def main(arguments: list[str]) -> int:
    return write_or_check(arguments, PAGE, "tools/docs/sharding.py", updated)


if __name__ == "__main__":
    run_door(main)
