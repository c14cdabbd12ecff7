"""What the documentation names is there: its commands parse, its flags, files and links exist."""

import ast
import re
import shlex

import pytest

from gm.config import load, load_evaluation
from gm.config.parsing import flags
from gm.config.schema import DOOR_SECTIONS
from tests.test_structure import FILES, PYTHON, ROOT, name

PAGES = [path for path in FILES if path.suffix == ".md"]
CONFIG_DOORS = {
    "train.py": load,
    "demo/sampling.py": lambda arguments: load(arguments, door="sample"),
    "demo/sampling_without_streamlit.py": lambda arguments: load(arguments, door="sample"),
    "tools/eval/eval_loss.py": lambda arguments: load_evaluation(arguments, "D"),
    "tools/eval/compare.py": lambda arguments: load_evaluation(arguments, "D"),
    "demo/tiny/compare.py": lambda arguments: load_evaluation(arguments, "D"),
}
# Flags of other programs, which the pages name too.
FOREIGN = {"--allow-run-as-root", "--oversubscribe", "--worker_num", "--local_worker_num", "--join", "--log_dir"}
FOREIGN |= {"--node_rank", "--master_addr", "--master_port"}
COMMAND = re.compile(r"(?:python|bash) (-m [\w.]+|[\w/]+\.(?:py|sh))([^`|\n#]*)|(train\.py) (--[^`|\n#]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]+(?![\w*-])")  # no letter of prompt files, and no --ici_*_parallelism
PLACE = re.compile(r"(?<![\w/.-])(?:gm|docs|tests|tools|scripts|configs|demo)/[\w/.-]*\.(?:py|md|sh|yaml)\b")


def written() -> dict[str, str]:
    """All prose that may hold commands: pages, comments of recipes and scripts, the docstrings of what can be run."""
    texts = {name(path): path.read_text(encoding="utf-8") for path in PAGES}
    for path in FILES:
        if path.suffix in (".yaml", ".sh") and "tests" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            texts[name(path)] = "\n".join(line[1:] for line in lines if line.startswith("#"))
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] in ("train.py", "tools", "demo"):
            texts[name(path)] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return texts


TEXTS = written()


def commands() -> list[tuple[str, str, str]]:
    """(where it is written, file, arguments) of every command that runs a file of ours."""
    found = []
    for where, text in TEXTS.items():
        for match in COMMAND.finditer(re.sub(r"\\\n\s*", "", text)):  # a command may go over several lines
            file = match[1] or match[3]
            if file.startswith("-m "):
                file = file.removeprefix("-m ").replace(".", "/") + ".py"
            found.append((where, file, (match[2] or match[4] or "").strip()))
    return found


def known_flags(file: str) -> set[str]:
    """Those that stand in a program's code, and those of the program it hands its arguments on to."""
    source = (ROOT / file).read_text(encoding="utf-8")
    code = re.sub(r"^\s*#.*", "", source, flags=re.MULTILINE)
    known = set(re.findall(r"--\w+" if file.endswith(".sh") else r"[\"'](--\w+)[\"']", code)) | {"--help", "--debug"}
    if "start_ranks" in source:
        known |= {f"--{flag}" for flag in flags("train")}
    onward = {"quickstart.py": "demo/tiny/quickstart.py", "gm.generated": "gm/generated.py"}
    return known.union(*(known_flags(other) for word, other in onward.items() if word in code and other != file))


def test_there_is_something_to_check():
    assert len(commands()) > 60
    assert len({file for _, file, _ in commands()} & set(CONFIG_DOORS)) == len(CONFIG_DOORS)


@pytest.mark.parametrize(("where", "file", "line"), commands())
def test_every_command_is_one_that_its_program_takes(where, file, line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert (ROOT / file).is_file()
    words = shlex.split(line)
    if file not in CONFIG_DOORS:
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known_flags(file)
    elif "--help" in words or "--print_config" in words:
        with pytest.raises(SystemExit):
            CONFIG_DOORS[file]([word for word in words if word not in ("--config", "FILE")])
    elif "..." not in words:
        CONFIG_DOORS[file](completed(file, words))


def completed(file: str, words: list[str]) -> list[str]:
    """A command with what its line leaves open, and without a configuration that only a user has."""
    if "--config" in words and not words[words.index("--config") + 1].startswith("configs/"):
        index = words.index("--config")
        words = words[:index] + words[index + 2 :]
    left_open = ("--data_path",) if file == "train.py" else ("--weight", "--prompt")
    if not {"--instance_data_dir", "data.path=D"} & set(words):
        words = words + [text for flag in left_open if flag not in words for text in (flag, "x")]
    return words


def test_every_flag_is_one_of_some_program():
    known = {f"--{flag}" for door in DOOR_SECTIONS for flag in flags(door)} | FOREIGN
    known |= {"--config", "--print_config", "--checkpoints"}
    for path in FILES:
        if path.suffix in (".sh", ".py") and path.relative_to(ROOT).parts[0] in ("tools", "demo", "scripts"):
            known |= known_flags(name(path))
    unknown = {name(page): set(FLAG.findall(TEXTS[name(page)])) - known for page in PAGES}
    assert not {page: flags for page, flags in unknown.items() if flags}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert heading in [title.lower().replace(" ", "-") for title in titles], target


def test_every_file_that_is_named_is_there():
    """In pages, and in the docstrings, comments and help texts of everything but the tests."""
    found = {}
    for path in FILES:
        if path.suffix in (".md", ".py", ".sh", ".yaml", ".toml") and path.relative_to(ROOT).parts[0] != "tests":
            named = set(PLACE.findall(path.read_text(encoding="utf-8")))
            found[name(path)] = {one for one in named if not (ROOT / one).exists()}
    assert not {where: files for where, files in found.items() if files}
    recipes = {path.name for path in FILES if path.suffix == ".yaml"}
    told = re.split("## All settings", TEXTS["docs/configuration.md"])[0]
    assert not [recipe for recipe in recipes if not recipe.startswith(".") and recipe not in told]
    for page in map(name, PAGES):
        named = set(re.findall(r"`(\w+\.yaml)`", TEXTS[page]))
        assert named <= recipes | {"config.yaml"}, page
