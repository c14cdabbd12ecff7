"""Where values come from: the schema's defaults, YAML files that inherit, and the command line, which wins."""

import difflib
import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gm.config.aliases import ALIASES, VALUE_ALIASES
from gm.config.schema import DOOR_SECTIONS, SETTINGS, VALIDATION_FLAGS, Config, Setting, escape
from gm.errors import UsageError

BASE_KEY = "_base_"
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
COMMAND_LINE = "command line"
COMMON_FLAGS = ("config", "print_config", "help", "debug")


@dataclass
class Given:
    """A value as it was given: ``name`` and ``origin`` are for messages (``--lr``, ``command line``)."""

    value: Any
    name: str
    origin: str

    @property
    def where(self) -> str:
        return self.name if self.origin == COMMAND_LINE else f"{self.name} in {self.origin}"


@dataclass
class CommandLine:
    """A command line taken apart; ``given`` maps paths of the schema to values."""

    configs: list[str] = field(default_factory=list)
    given: dict[str, Given] = field(default_factory=dict)
    help: bool = False
    print_config: bool = False


def flags(door: str) -> dict[str, str]:
    """Flag (without dashes) -> path, for the sections of a door; aliases included."""
    known = {s.flag: s.path for s in SETTINGS.values() if s.section in DOOR_SECTIONS[door]}
    for alias, path in ALIASES.items():
        here = door == "train" if alias in VALIDATION_FLAGS else SETTINGS[path].section in DOOR_SECTIONS[door]
        if "." not in alias and here:
            known[alias] = path
    return known


def nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    """``: did you mean x?`` for a misspelt name, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean {dashes}{match[0]}?" if match else ""


def read_command_line(arguments: Sequence[str], door: str) -> CommandLine:
    """Take ``--flag value``, ``--flag=value``, ``section.key=value`` and bare boolean flags apart.

    Raises:
        UsageError: unknown flag or key, missing value, stray argument.
    """
    line = CommandLine()
    known = flags(door)
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, has_value, value = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help"):
            line.help = True
        elif argument == "--print_config":
            line.print_config = True
        elif not argument.startswith("--"):
            if argument.startswith("-"):
                raise UsageError(f"flags have two dashes: write -{argument} (--help lists all)")
            if not has_value:
                raise UsageError(f"{argument!r} belongs to no flag: write --flag value or section.key=value")
            path = key_path(name, name)
            line.given[path] = Given(value, name, COMMAND_LINE)
        else:
            if name in ("help", "print_config"):
                raise UsageError(f"--{name} takes no value: leave {value!r} out")
            path = None if name == "config" else flag_path(name, known)
            if not has_value:
                value = _next_value(name, SETTINGS.get(path or ""), rest)
            if path is None:
                line.configs.append(value)
            else:
                line.given[path] = Given(value, f"--{name}", COMMAND_LINE)
    return line


def take_list(arguments: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The values of a flag that takes several and is no setting (``--checkpoints a b c``), and the other arguments.

    Raises:
        UsageError: the flag has no value.
    """
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in arguments:
        if argument.startswith("--"):
            name, has_value, value = argument.partition("=")
            taking = name == flag
            if taking and has_value:
                values.append(value)
        if taking and not argument.startswith("--"):
            values.append(argument)
        elif not taking:
            rest.append(argument)
    if not values and any(argument.partition("=")[0] == flag for argument in arguments):
        raise UsageError(f"{flag} needs at least one value")
    return values, rest


def flag_path(name: str, known: Mapping[str, str]) -> str:
    """The schema's path of a flag; ``--section.key`` is a flag too."""
    if name in known:
        return known[name]
    if "." in name:
        return key_path(name, f"--{name}")
    elsewhere = [setting.path for setting in SETTINGS.values() if setting.flag == name]
    if elsewhere:
        raise UsageError(f"--{name} is not a flag here: write {elsewhere[0]}=value")
    match = nearest(name, (*known, *COMMON_FLAGS), dashes="--")
    raise UsageError(f"unknown flag --{name}{match} (--help lists all)")


def key_path(key: str, shown: str, origin: str = COMMAND_LINE) -> str:
    """The schema's path of a dotted key."""
    section, _, leaf = key.rpartition(".")
    path = ALIASES.get(key, key) if section else key
    if section and ALIASES.get(leaf, "").startswith(f"{section}."):
        path = ALIASES[leaf]  # a flag's other name is a key too, in its own section: optim.lr
    if path in SETTINGS:
        return path
    place = "" if origin == COMMAND_LINE else f" in {origin}"
    raise UsageError(f"unknown key {shown}{place}{nearest(key, SETTINGS) or ' (--help lists all)'}")


def _next_value(name: str, known: Setting | None, rest: list[str]) -> str:
    """Take the flag's value from the arguments that follow; one that "true" is a value of may stand alone."""
    following = rest[0] if rest else None
    if known is not None and (known.type is bool or (known.path, "true") in VALUE_ALIASES):
        alone = following is None or following.startswith("--") or "=" in following
        return "true" if alone else rest.pop(0)
    if following is None or following.startswith("--"):
        raise UsageError(f"--{name} needs a value" + (f": {known.expected}" if known else ": the path of a YAML file"))
    return rest.pop(0)


def read_file(path: str, chain: tuple[Path, ...] = ()) -> tuple[Any, dict[str, Given]]:
    """Read a YAML file on top of the files its ``_base_`` names (relative to it; the later of a list wins).

    Returns:
        The merged OmegaConf tree, and for each path of the schema the file that set it last (value not resolved).

    Raises:
        UsageError: no such file, no YAML, unknown key, a file that inherits from itself.
    """
    file = Path(path)
    if file.resolve() in chain:
        raise UsageError(f"{path} inherits from itself through {BASE_KEY}")
    if not file.is_file():
        wanted = f"{BASE_KEY} of {chain[-1]}" if chain else "--config"
        beside = [str(file.with_name(other.name)) for other in file.parent.glob("*.yaml")]
        raise UsageError(f"no such file: {path} ({wanted}){nearest(path, beside)}")
    try:
        tree = OmegaConf.load(file)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(tree):
        raise UsageError(f"{path} must hold sections such as data: and optim:")
    bases = tree.pop(BASE_KEY, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if OmegaConf.is_dict(bases) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"{BASE_KEY} in {path} must be the name of a YAML file or a list of names")
    merged, given = OmegaConf.create({}), {}
    for base in bases:
        base_tree, base_given = read_file(os.path.normpath(file.parent / base), (*chain, file.resolve()))
        merged, given = OmegaConf.merge(merged, base_tree), given | base_given
    own = OmegaConf.create({})
    for key, value in _leaves(OmegaConf.to_container(tree, resolve=False), path):
        target = key_path(key, key, path)
        OmegaConf.update(own, target, value)
        given[target] = Given(value, key, path)
    return OmegaConf.merge(merged, own), given


def _leaves(tree: Mapping[Any, Any], file: str) -> Iterator[tuple[str, Any]]:
    """The dotted keys of a file; sections are one level deep."""
    sections = {setting.section for setting in SETTINGS.values()} - {""}
    for name, value in tree.items():
        if name in sections and isinstance(value, Mapping):
            yield from ((f"{name}.{leaf}", item) for leaf, item in value.items())
        elif name in sections and value is None:
            continue  # a section whose lines are all comments
        elif name in sections:
            raise UsageError(f"{name} in {file} is a section: write its keys below it, indented")
        elif name in SETTINGS:
            yield name, value
        else:
            raise UsageError(f"unknown key {name} in {file}{nearest(str(name), [*sections, *SETTINGS])}")


def convert(known: Setting, given: Given, owner: type = Config) -> Any:
    """The value in the type of a setting of ``owner``.

    Raises:
        UsageError: wrong type, not among the choices, out of bounds.
    """
    value = given.value
    if known.entries:
        return _convert_list(known, given)
    hint = nearest(str(value), map(str, known.properties.get("choices", ())))
    wrong = UsageError(f"{given.where} takes {known.expected}, not {value!r}{hint}")
    if isinstance(value, str) and known.optional and value.lower() in ("none", "null", ""):
        value = None
    if value is None and known.optional:
        return None
    if known.type is bool:
        value = BOOLEANS.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool) and "on" in known.properties.get("choices", ()):
        value = "on" if value else "off"  # YAML reads the bare words as booleans
    value = VALUE_ALIASES.get((known.path, str(value)), value)
    if isinstance(value, bool) or (known.type is str and not isinstance(value, (str, int, float))):
        raise wrong
    scratch = _typed_tree(owner)
    path = known.path if owner is Config else known.path.rpartition(".")[2]
    try:
        OmegaConf.update(scratch, path, escape(value) if isinstance(value, str) else value)
        value = OmegaConf.select(scratch, path)
    except OmegaConfBaseException:
        raise wrong from None
    if not _within(value, known.properties):
        raise wrong
    return value


def _convert_list(known: Setting, given: Given) -> tuple:
    """A list of mappings, or YAML of one, as instances of the setting's type."""
    value = given.value
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            value = given.value
    if not value or value == "none":
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
        raise UsageError(f"{given.where} takes {known.expected}, not {given.value!r}")
    entries = []
    for number, entry in enumerate(value, 1):
        items = {}
        for key, item in entry.items():
            if key not in known.entries:
                hint = nearest(str(key), known.entries)
                raise UsageError(f"unknown key {key} in entry {number} of {given.where}{hint}")
            own = Given(item, f"{key} of entry {number} of {given.name}", given.origin)
            items[key] = convert(known.entries[key], own, known.type)
        entries.append(known.type(**items))
    return tuple(entries)


@functools.cache
def _typed_tree(owner: type) -> Any:
    """OmegaConf's view of a part of the schema, which converts what is put into it."""
    return OmegaConf.structured(owner)


def _within(value: Any, properties: Mapping[str, Any]) -> bool:
    choices = properties.get("choices")
    if choices:
        return value in choices
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return (
        ("at_least" not in properties or value >= properties["at_least"])
        and ("above" not in properties or value > properties["above"])
        and ("at_most" not in properties or value <= properties["at_most"])
        and ("below" not in properties or value < properties["below"])
        and ("multiple_of" not in properties or value % properties["multiple_of"] == 0)
    )


def resolve(line: CommandLine, defaults: Mapping[str, Any] | None = None) -> tuple[Config, dict[str, str]]:
    """Lay files over defaults and the command line over both.

    Returns:
        The configuration, and the origin of every value that is not the schema's default, by path.
    """
    # An empty list is none here, so that text may take its place.
    tree = OmegaConf.create(asdict(Config(), dict_factory=lambda items: {k: v if v != () else None for k, v in items}))
    given = {key_path(key, key): Given(value, key, "default") for key, value in (defaults or {}).items()}
    _put(tree, given)
    for file in line.configs:
        file_tree, from_file = read_file(file)
        tree = OmegaConf.merge(tree, file_tree)
        given |= from_file
    _put(tree, line.given)
    given |= line.given
    config = Config()
    for path, item in given.items():
        try:
            item.value = OmegaConf.select(tree, path)
            if OmegaConf.is_config(item.value):
                item.value = OmegaConf.to_container(item.value, resolve=True)
        except OmegaConfBaseException as error:
            raise UsageError(f"{item.where}: {str(error).splitlines()[0]}") from None
        section, _, leaf = path.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, convert(SETTINGS[path], item))
    return config, {path: item.origin for path, item in given.items()}


def _put(tree: Any, given: Mapping[str, Given]) -> None:
    """Lay plain values into an OmegaConf tree."""
    for path, item in given.items():
        OmegaConf.update(tree, path, escape(item.value) if isinstance(item.value, str) else item.value)
