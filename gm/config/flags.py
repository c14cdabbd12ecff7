"""Command lines of tools without a configuration: argparse, with errors of one line that name the nearest flag."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from gm.config.parsing import nearest
from gm.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageError; flags are not guessed from their beginnings."""

    def __init__(self, description: str):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=kind, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of ``arguments``.

        Raises:
            UsageError: unknown flag, missing or wrong value; one line.
        """
        known = [option for action in self._actions for option in action.option_strings]
        for argument in arguments:
            flag = argument.partition("=")[0]
            # Before argparse looks: it would name a required flag as missing, not the misspelt one as unknown.
            if flag.startswith("--") and flag not in known:
                raise UsageError(f"unknown flag {flag}{nearest(flag, known) or ': see --help'}")
        return self.parse_args(list(arguments))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}: see --help")


def positive(text: str) -> int:
    """The ``type`` of an argument that is a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return number
