"""The configuration of every door: ``load(arguments)`` gives a typed ``Config``.

Defaults of the schema < YAML files (``--config``, ``_base_:`` inherits) < command line. Whatever is unknown, of the
wrong type or contradictory is a ``UsageError`` of one line.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gm.config.parsing import read_command_line, resolve, take_list
from gm.config.schema import Config
from gm.config.text import help_text, resolved_text
from gm.config.validation import complete, validate

__all__ = ["Config", "load", "load_evaluation", "validate"]


def load(
    arguments: Sequence[str], defaults: Mapping[str, Any] | None = None, door: str = "train", usage: str = ""
) -> Config:
    """Read a command line into a checked configuration.

    Args:
        arguments: without the program's name.
        defaults: a door's own defaults by dotted key, such as ``{"sample.sample_step": 20}``.
        door: "train" (train.py), "sample" (the sampling demo) or "eval" (tools/eval): whose settings are flags. But for
            "train", ``--seed`` and ``--save_path`` are those of section ``sample``. Dotted keys reach every section at
            every door.
        usage: what ``--help`` says first.

    Raises:
        UsageError: one line naming the flag or key and the remedy.
        SystemExit: with 0, after ``--help`` or ``--print_config`` was answered on stdout.
    """
    line = read_command_line(arguments, door)
    if line.help:
        print(help_text(door, usage))
        sys.exit(0)
    config, origins = resolve(line, defaults)
    if door != "sample":
        complete(config, origins, door)
    if line.print_config:
        print(resolved_text(config, origins))
        sys.exit(0)
    validate(config, door)
    return config


def load_evaluation(arguments: Sequence[str], save_path: str, usage: str = "") -> tuple[Config, list[str]]:
    """``load`` for tools/eval, which write to ``save_path`` by default -> configuration and ``--checkpoints``."""
    checkpoints, arguments = take_list(arguments, "--checkpoints")
    # On the command line, so that it beats what the configuration of a run says about its own pictures.
    return load(["--save_path", save_path, *arguments], door="eval", usage=usage), checkpoints
