"""The schema in words: ``--help``, ``--print_config`` and the table of the documentation."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields

from gm.config.aliases import ALIASES
from gm.config.schema import DOOR_SECTIONS, SETTINGS, Config, Setting
from gm.config.validation import get

SECTION_TITLES = {
    "": "what to do",
    "model": "model: networks and weights",
    "data": "data: pictures and captions",
    "cache": "cache: encode once, train often",
    "diffusion": "diffusion: schedule, objective, timesteps",
    "optim": "optim: optimizer and learning rate",
    "train": "train: the run",
    "validation": "validation: pictures and loss on the way",
    "launch": "launch: device and mode",
    "parallel": "parallel: several devices",
    "sample": "sample: drawing pictures",
}
HELP_COLUMN, HELP_WIDTH = 30, 118
COMMON = """\
  --config FILE               YAML file; given more than once, the later file wins. _base_: in a file inherits
  --print_config              show every value and where it came from, and stop
  --debug                     show the traceback of an error
  --help                      this text
A setting is --flag value, --flag=value, section.key=value, or a line of a YAML file; command line beats file. Paths are
relative to the current folder. Booleans are true/True/1 and false/False/0; a boolean flag alone is true."""


def shown(value: object) -> str:
    """A value as the command line takes it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):  # of dataclasses, as they are written in YAML
        given = [{leaf.name: getattr(one, leaf.name) for leaf in fields(one)} for one in value]
        return json.dumps(given, ensure_ascii=False)
    return '""' if value == "" else str(value)


def kind(setting: Setting) -> str:
    """The placeholder of a flag's value."""
    choices = setting.properties.get("choices")
    if choices:
        return "|".join(map(str, choices))
    if setting.entries:
        return "LIST"
    return {int: "N", float: "X", bool: "BOOL", str: "TEXT"}[setting.type]


def other_names(setting: Setting) -> list[str]:
    """The aliases of a setting, as they are written."""
    return [name if "." in name else f"--{name}" for name, path in ALIASES.items() if path == setting.path]


def help_text(door: str, usage: str) -> str:
    """The text of ``--help``: the settings of a door, by section, with defaults."""
    lines = [usage.strip(), "", COMMON]
    for section in DOOR_SECTIONS[door]:
        lines += ["", SECTION_TITLES[section]]
        for setting in SETTINGS.values():
            if setting.section != section:
                continue
            unit = f" [{setting.properties['unit']}]" if "unit" in setting.properties else ""
            meaning = f"{setting.properties['help']}{unit} (default {shown(setting.default)})"
            head = f"  --{setting.flag} {kind(setting)}"
            if len(head) >= HELP_COLUMN:
                lines.append(head)
                head = ""
            lines += textwrap.wrap(
                meaning,
                HELP_WIDTH,
                initial_indent=f"{head:<{HELP_COLUMN}}",
                subsequent_indent=" " * HELP_COLUMN,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def resolved_text(config: Config, origins: Mapping[str, str]) -> str:
    """The text of ``--print_config``: every value and where it came from."""
    width = max(len(path) for path in SETTINGS)
    rows = [(path, shown(get(config, path)), origins.get(path, "default")) for path in SETTINGS]
    return "\n".join(f"{path:<{width}} = {value:<32} # {origin}" for path, value, origin in rows)


def markdown_table() -> str:
    """Every setting as Markdown tables, one per section."""
    lines = []
    for section, title in SECTION_TITLES.items():
        lines += [f"### {title}", "", "| flag | key | value | default | meaning |", "|---|---|---|---|---|"]
        for setting in SETTINGS.values():
            if setting.section != section:
                continue
            meaning = setting.properties["help"]
            if other_names(setting):
                meaning += "; also " + ", ".join(f"`{name}`" for name in other_names(setting))
            value = ", ".join(filter(None, (setting.expected, setting.properties.get("unit"))))
            cells = (f"`--{setting.flag}`", f"`{setting.path}`", value, f"`{shown(setting.default)}`", meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
