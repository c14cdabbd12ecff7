"""What to draw, from the command line: one prompt, or a file with one on each line and options behind it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from gm.errors import UsageError
from gm.sampling.pipeline import Request, Settings

# The letters of kohya's sample prompts; each changes one prompt only.
SETTING_OPTIONS = {"w": ("width", int), "h": ("height", int), "s": ("sample_step", int), "l": ("guidance_scale", float)}
OPTIONS = {**SETTING_OPTIONS, "n": ("negative_prompt", str), "d": ("seed", int)}


@dataclass(frozen=True)
class Wish:
    """A picture to draw and how."""

    request: Request
    settings: Settings


def read_prompts(prompt: str) -> list[str]:
    """The lines of the file ``prompt`` names, without empty ones and ``#`` comments; or ``prompt`` itself.

    Raises:
        UsageError: nothing to draw: no text, an empty file, a ``.txt`` that is not there.
    """
    if not prompt.strip():
        raise UsageError('nothing to draw: --prompt "your prompt", or a text file with one prompt a line')
    path = Path(prompt)
    try:
        is_file = path.is_file()
    except OSError:  # a prompt can be longer than a file name may be
        is_file = False
    if not is_file:
        if path.suffix == ".txt" and len(prompt.split()) == 1:
            raise UsageError(f"no prompt file {prompt}: give a file with one prompt a line, or the prompt itself")
        return [prompt.strip()]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"prompt file {prompt} is no UTF-8 text: save it as UTF-8, one prompt a line") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"prompt file {prompt} is empty: write one prompt a line")
    return prompts


def parse_line(line: str) -> tuple[str, dict[str, str | int | float]]:
    """``a red circle --n text --d 7`` -> the prompt and its options by field name.

    ``--n`` negative prompt, ``--d`` seed, ``--w`` width, ``--h`` height, ``--s`` steps, ``--l`` guidance scale.

    Raises:
        UsageError: an option that is unknown or has no fitting value, or no prompt before it.
    """
    prompt, *parts = re.split(r"(?:^|\s)--(?=[a-zA-Z])", line)
    options: dict[str, str | int | float] = {}
    for part in parts:
        letter, _, value = part.partition(" ")
        if letter not in OPTIONS:
            known = ", ".join(f"--{known}" for known in OPTIONS)
            raise UsageError(f"prompt line {line!r}: unknown option --{letter}, a line takes {known}")
        name, kind = OPTIONS[letter]
        try:
            options[name] = kind(value.strip())
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise UsageError(f"prompt line {line!r}: --{letter} takes {wanted}, not {value.strip()!r}") from None
    if not prompt.strip():
        raise UsageError(f"prompt line {line!r} has options but no prompt")
    for name, least in (("seed", 0), ("sample_step", 1), ("guidance_scale", 0)):
        if options.get(name, least) < least:
            raise UsageError(f"prompt line {line!r}: {name} is {options[name]}, it must be at least {least}")
    return prompt.strip(), options


def make_wishes(
    prompts: list[str], settings: Settings, seed: int, num_images: int = 1, negative_prompt: str = ""
) -> list[Wish]:
    """``num_images`` wishes for each line; picture ``i`` of a prompt has seed ``seed + i``, or the line's seed + i."""
    wishes = []
    for line in prompts:
        prompt, options = parse_line(line)
        negative = options.pop("negative_prompt", negative_prompt)
        first = options.pop("seed", seed)
        own = replace(settings, **options)
        wishes += [Wish(Request(prompt, first + index, negative), own) for index in range(num_images)]
    return wishes
