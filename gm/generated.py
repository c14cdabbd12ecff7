"""A part of a page of the docs that a program writes, between two markers (``tools/docs``)."""

from collections.abc import Callable
from pathlib import Path

from gm.errors import SuiteError, UsageError
from gm.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def between(page: str, begin: str, end: str, content: str) -> str:
    """The page with ``content`` between its markers. Raises SuiteError if it has none."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SuiteError(f"the page lacks the markers {begin} and {end}: put them where the table belongs")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def write_or_check(arguments: list[str], path: Path, tool: str, updated: Callable[[str], str]) -> int:
    """Bring a page up to date, or with ``--check`` only say whether it is. ``tool``: the program's path in the docs.

    Raises:
        UsageError: other arguments.
        SuiteError: the page lacks its markers, or is out of date and was only to be checked.
    """
    if arguments not in ([], ["--check"]):
        raise UsageError(f"usage: python {tool} [--check]")
    page, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    wanted = updated(page)
    if wanted == page:
        print(f"{name} is up to date")
        return 0
    if arguments:
        raise SuiteError(f"{name} is out of date: run python {tool}")
    write_text(path, wanted)
    print(f"{name} written")
    return 0
