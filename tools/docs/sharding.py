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
from gm.errors import SuiteError, UsageError, run_door  # noqa: E402
from gm.files import write_text  # noqa: E402

PAGE = ROOT / "docs" / "distributed.md"
BEGIN, END = "<!-- sharding: made by tools/docs/sharding.py -->", "<!-- end of sharding -->"
RECIPE = ["--config", str(ROOT / "configs" / "training" / "sd_xl_base_finetune_910b.yaml"), "--data_path", "D"]
RECIPE += ["--param_fp16", "True", "--use_ema", "True"]


def updated(page: str) -> str:
    """The page with today's table between its markers."""
    from gm.models.architecture import ModelArchitecture
    from gm.training.capacity import table

    config = load(RECIPE)
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SuiteError(f"{PAGE} lacks the markers {BEGIN} and {END}: put them where the table belongs")
    found = table(config, ModelArchitecture(), memory_in_gigabytes(config.launch.max_device_memory))
    return f"{before}{BEGIN}\n\n{found}\n{END}{after}"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        raise UsageError("usage: python tools/docs/sharding.py [--check]")
    page = PAGE.read_text(encoding="utf-8")
    if updated(page) == page:
        print(f"{PAGE.relative_to(ROOT)} is up to date")
        return 0
    if arguments:
        raise SuiteError(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/docs/sharding.py")
    write_text(PAGE, updated(page))
    print(f"{PAGE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    run_door(main)
