"""What to draw, from the command line: one prompt, or a file with one on each line and options behind it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gm.config.parsing import COMMAND_LINE, Given, convert
from gm.config.schema import SETTINGS
from gm.errors import UsageError
from gm.sampling.settings import Request, Settings

# Settings that a line of a prompt file may change for itself.
OWN_SETTINGS = (
    "sampler",
    "sample_step",
    "timestep_spacing",
    "karras_sigmas",
    "guidance_scale",
    "guidance_rescale",
    "unconditional",
    "height",
    "width",
    "orig_height",
    "orig_width",
    "target_height",
    "target_width",
    "crop_coords_top",
    "crop_coords_left",
    "aesthetic_score",
    "negative_aesthetic_score",
)
OWN_REQUESTS = ("negative_prompt", "seed", "num_images")
LETTERS = {  # of kohya's sample prompts
    "n": "negative_prompt",
    "d": "seed",
    "w": "width",
    "h": "height",
    "s": "sample_step",
    "l": "guidance_scale",
}
OPTION = re.compile(r"""(?:^|\s)--([A-Za-z]\w*)(?:[ =]+(?!--[A-Za-z])("[^"]*"|'[^']*'|.*?))?(?=\s+--[A-Za-z]|\s*$)""")


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


def parse_line(line: str) -> tuple[str, dict[str, Any]]:
    """``a red circle --seed 7 --negative_prompt "blue, green"`` -> the prompt and its options by name.

    The names are those of the command line, or kohya's letters: ``--n`` negative prompt, ``--d`` seed, ``--w`` width,
    ``--h`` height, ``--s`` steps, ``--l`` guidance scale.

    Raises:
        UsageError: an option that is unknown or has no fitting value, or no prompt before it.
    """
    found = list(OPTION.finditer(line))
    prompt = line[: found[0].start()].strip() if found else line.strip()
    options: dict[str, Any] = {}
    for match in found:
        given, text = match[1], match[2] or ""
        name = LETTERS.get(given, given)
        if name not in OWN_SETTINGS + OWN_REQUESTS:
            known = ", ".join(f"--{known}" for known in (*LETTERS, *OWN_REQUESTS, *OWN_SETTINGS))
            raise UsageError(f"prompt line {line!r}: unknown option --{given}, a line takes {known}")
        setting = SETTINGS[f"sample.{name}"]
        if setting.type is bool:
            text = text or "true"
        if setting.type is str and text[:1] in ("'", '"') and text[:1] == text[-1:]:
            text = text[1:-1]
        try:
            options[name] = convert(setting, Given(text, f"--{given}", COMMAND_LINE))
        except UsageError as error:
            raise UsageError(f"prompt line {line!r}: {error}") from None
    if not prompt:
        raise UsageError(f"prompt line {line!r} has options but no prompt")
    return prompt, options


def make_wishes(
    prompts: list[str], settings: Settings, seed: int, num_images: int = 1, negative_prompt: str = ""
) -> list[Wish]:
    """``num_images`` wishes for each line; picture ``i`` of a prompt has seed ``seed + i``, or the line's seed + i."""
    wishes = []
    for line in prompts:
        prompt, options = parse_line(line)
        negative = options.pop("negative_prompt", negative_prompt)
        first, count = options.pop("seed", seed), options.pop("num_images", num_images)
        own = replace(settings, **options)
        wishes += [Wish(Request(prompt, first + index, negative), own) for index in range(count)]
    return wishes
