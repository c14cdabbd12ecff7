"""What MindSpore finds before it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gm import environment

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, os, sys
from gm.environment import take_allocator
print("begun", file=sys.stderr)
take_allocator()
has = "libjemalloc" in open("/proc/self/maps").read()
print(json.dumps([os.getpid(), has, sys.argv[1:], os.environ.get("MALLOC_CONF")]))
"""

jemalloc = pytest.mark.skipif(environment.allocator() is None, reason="this machine keeps its allocator")


def run(command: list[str], **variables: str) -> tuple[list, int, int]:
    """(what the program says of itself, how often it began, the number of its process)."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    surroundings = kept | {"PYTHONPATH": str(ROOT)} | variables
    process = subprocess.Popen(
        command, env=surroundings, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out), errors.count("begun"), process.pid


@jemalloc
@pytest.mark.parametrize("way", ["file", "option", "module"])
def test_a_program_begins_anew_once_with_all_its_words(tmp_path, way):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    how = {"file": [str(program)], "option": ["-X", "utf8", str(program)], "module": ["-m", "program"]}[way]
    words = ["--prompt", "two  words", "", "-x"]
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    said, begun, number = run([sys.executable, *how, *words], **variables)
    assert said[:3] == [number, True, words]
    assert "dirty_decay_ms" in said[3]
    assert begun == 2


@jemalloc
def test_what_the_user_preloads_stays(tmp_path):
    said, begun, _ = run([sys.executable, "-c", PROGRAM], LD_PRELOAD="")
    assert not said[1]
    assert begun == 1
    said, _, _ = run([sys.executable, "-c", PROGRAM], MALLOC_CONF="narenas:2")
    assert said[1]
    assert said[3] == "narenas:2"


@pytest.mark.parametrize("surroundings", ["darwin", "aarch64", "ascend", "no mindspore", "no library"])
def test_elsewhere_the_allocator_stays(surroundings, monkeypatch, tmp_path):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(environment.sys, "platform", "darwin" if surroundings == "darwin" else "linux")
    machine = "aarch64" if surroundings == "aarch64" else "x86_64"
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(environment, "ASCEND", tmp_path / ("" if surroundings == "ascend" else "missing"))
    if surroundings == "no mindspore":
        monkeypatch.setattr(environment, "find_spec", lambda name: None)
    elif surroundings == "no library":
        monkeypatch.setattr(environment, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "x.py")}))
    monkeypatch.setattr(environment.os, "execv", lambda *words: pytest.fail(f"began anew: {words}"))
    assert environment.allocator() is None
    environment.take_allocator()
    assert "LD_PRELOAD" not in os.environ
