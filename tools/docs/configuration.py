"""Write the table of all settings into docs/configuration.md, from the schema that the program itself reads.

python tools/docs/configuration.py            # rewrite the part between the two markers
python tools/docs/configuration.py --check    # only say whether it is up to date: exit code 1 if not
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gm.config.text import markdown_table  # noqa: E402
from gm.errors import run_door  # noqa: E402
from gm.generated import between, write_or_check  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: made by tools/docs/configuration.py -->", "<!-- end of settings -->"


def updated(page: str) -> str:
    """The page with the table of today's schema between its markers."""
    return between(page, BEGIN, END, markdown_table())


def main(arguments: list[str]) -> int:
    return write_or_check(arguments, PAGE, "tools/docs/configuration.py", updated)


if __name__ == "__main__":
    run_door(main)
