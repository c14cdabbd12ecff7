"""The rules of the house: what may import what, how long a file may be, and what no file may mention."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A room may import itself, the rooms before it, and what every room stands on.
FOUNDATION = {"errors", "files", "generated", "environment"}
ROOMS = ["config", "compilation", "parallel", "launch", "kernels", "models", "diffusion", "weights", "data"]
ROOMS += ["training", "sampling", "evaluation"]
REFERENCES = {"torch", "torchvision", "diffusers", "accelerate"}
LONGEST = 500


def tracked() -> list[Path]:
    """The repository's files, whether it is a clone or an unpacked archive."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        ours = [path for path in ROOT.iterdir() if path.name not in ("runs", "outputs") and path.name[0] != "."]
        paths = [path for top in ours for path in ([top] if top.is_file() else top.rglob("*"))]
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PACKAGE = [path for path in PYTHON if path.is_relative_to(ROOT / "gm")]
DOORS = [
    path
    for path in PYTHON
    if path == ROOT / "train.py" or path.is_relative_to(ROOT / "tools") or path.parent == ROOT / "demo"
    if not path.is_relative_to(ROOT / "tools" / "benchmark")  # these measure, and drive the networks themselves
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or within a function: ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(parts: tuple[str, ...]) -> str | None:
    """The room of a module of gm, given the parts of its path or name behind ``gm``."""
    first = parts[0].removesuffix(".py") if parts else ""
    return first if first in ROOMS or first in FOUNDATION else None


def test_there_is_something_to_check():
    assert len(PACKAGE) > 20
    assert len(DOORS) > 2


def test_the_package_never_imports_its_references():
    found = {name(path): REFERENCES & {module.split(".")[0] for module in imports(path)} for path in PACKAGE}
    assert not {path: modules for path, modules in found.items() if modules}


def test_dependencies_point_down_the_table_only():
    wrong = []
    for path in PACKAGE:
        own = room(path.relative_to(ROOT / "gm").parts)
        for module in imports(path) if own else ():
            package, *parts = module.split(".")
            used = room(tuple(parts)) if package == "gm" else None
            if used in ROOMS and (own in FOUNDATION or ROOMS.index(used) > ROOMS.index(own)):
                wrong.append(f"{name(path)} ({own}) imports {module}")
    assert not wrong


def test_every_part_of_the_package_is_in_the_table():
    parts = {path.relative_to(ROOT / "gm").parts for path in PACKAGE}
    assert not [part for part in parts if room(part) is None and part != ("__init__.py",)]


def test_doors_are_thin():
    allowed = sys.stdlib_module_names | {"gm"}
    found = {name(path): {module.split(".")[0] for module in imports(path)} - allowed for path in DOORS}
    assert not {path: modules for path, modules in found.items() if modules}


def test_command_lines_are_read_in_one_way():
    """argparse alone tells a mistake in many lines, and guesses flags from their beginnings."""
    uses = [path for path in PYTHON if "ArgumentParser" in path.read_text(encoding="utf-8")]
    assert {name(path) for path in uses} == {"gm/config/flags.py", name(Path(__file__))}


def test_files_can_be_read_at_a_sitting():
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert not {path: length for path, length in lengths.items() if length >= LONGEST}


def test_no_file_mentions_one_machine():
    pattern = re.compile(r"(?<![\w.~$}])/(?:root|home|Users|work|tmp|opt)/\w+")
    found = {}
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found |= {name(path): match.group() for match in pattern.finditer(text)}
    assert not found
