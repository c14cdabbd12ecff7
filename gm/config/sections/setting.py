"""One leaf of the schema."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **properties: Any) -> Any:
    """A dataclass field of the schema.

    ``properties``: ``unit``; ``choices`` (allowed values); ``at_least``, ``above``, ``at_most``, ``below`` (bounds of
    a number); ``multiple_of``; ``flag`` (name on the command line where the leaf alone would say too little).
    """
    return field(default=default, metadata={"help": help, **properties})
