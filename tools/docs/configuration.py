"""Write the table of all settings into docs/configuration.md, from the schema that the program itself reads.

python tools/docs/configuration.py            # rewrite the part between the two markers
python tools/docs/configuration.py --check    # only say whether it is up to date: exit code 1 if not
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gm.config.text import markdown_table  # noqa: E402
from gm.errors import SuiteError, UsageError, run_door  # noqa: E402
from gm.files import write_text  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: made by tools/docs/configuration.py -->", "<!-- end of settings -->"


def updated(page: str) -> str:
    """The page with the table of today's schema between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SuiteError(f"{PAGE} lacks the markers {BEGIN} and {END}: put them where the table belongs")
    return f"{before}{BEGIN}\n\n{markdown_table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        raise UsageError("usage: python tools/docs/configuration.py [--check]")
    page = PAGE.read_text(encoding="utf-8")
    if updated(page) == page:
        print(f"{PAGE.relative_to(ROOT)} is up to date")
        return 0
    if arguments:
        raise SuiteError(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/docs/configuration.py")
    write_text(PAGE, updated(page))
    print(f"{PAGE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    run_door(main)
