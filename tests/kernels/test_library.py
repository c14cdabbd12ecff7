"""The kernels' library is compiled once for a source, a compiler and a machine; where it cannot be, a line says why."""

import ctypes
import errno
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gm.kernels import library as kernels

ROOT = Path(__file__).resolve().parents[2]
SOURCE = kernels.SOURCE
COMPILER = kernels.find_compiler()
ZIG = os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(kernels._folder() / "zig")  # where it has compiled its own library
PROGRAM = "import sys; from pathlib import Path; from gm.kernels import library as kernels; "
PROGRAM += "kernels.SOURCE = Path(sys.argv[1]); print(kernels.library())"

compiling = pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")


@pytest.fixture(autouse=True)
def source(tmp_path, monkeypatch):
    """A source of one line, a cache of the test's own, and nothing found before."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.cpp").write_text('extern "C" __attribute__((visibility("default"))) int one() { return 1; }\n')
    (source / "one.h").write_text("")
    monkeypatch.setattr(kernels, "SOURCE", source)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", ZIG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.library.cache_clear()
    yield source
    kernels.library.cache_clear()


def put(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Compiler:
    """This machine's compiler, taken by ``CXX``, behind a script that notes each call and runs ``before`` it."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.calls = folder, folder / "calls"
        monkeypatch.setenv("CXX", str(folder / "compiler"))
        self.put()

    def put(self, before: str = "") -> None:
        put(self.folder / "compiler", f'echo "$*" >>"{self.calls}"\n{before}\nexec {shlex.join(COMPILER)} "$@"')

    def compiled(self) -> int:
        """How often it made a library, and was not only asked what it defines."""
        return sum("-dM" not in call for call in self.calls.read_text().splitlines())


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    return Compiler(tmp_path, monkeypatch)


def found_anew() -> Path | None:
    """As another process finds it."""
    kernels.library.cache_clear()
    return kernels.library()


def warned(caplog) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


def start(source: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(source)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


@compiling
def test_it_is_compiled_once_and_found_again(compiler, tmp_path):
    made = kernels.library()
    assert ctypes.CDLL(str(made)).one() == 1
    assert made.parent == tmp_path / "cache" / "sdxl-mindspore" / "kernels"
    assert files(made.parent) == [".lock", ".so"]
    assert not list((tmp_path / "temporary").iterdir())
    assert found_anew() == made
    assert compiler.compiled() == 1
    calls = compiler.calls.read_text()
    assert kernels.library() == made
    assert compiler.calls.read_text() == calls


@compiling
@pytest.mark.parametrize("what", ["source", "header", "name", "flag", "machine", "compiler"])
def test_another_input_makes_another_library(what, source, compiler, monkeypatch, tmp_path):
    first = kernels.library()
    if what == "source":
        (source / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    elif what == "header":
        (source / "one.h").write_text("// another\n")
    elif what == "name":
        (source / "one.h").rename(source / "two.h")
    elif what == "flag":
        monkeypatch.setattr(kernels, "FLAGS", [*kernels.FLAGS, "-DTWO"])
    elif what == "machine":
        compiler.put('case "$*" in *-dM*) echo "#define __ANOTHER__ 1" ;; esac')
    else:
        monkeypatch.setenv("CXX", str(tmp_path / "compiler") + " -DTWO")
    second = found_anew()
    assert compiler.compiled() == 2
    assert second != first
    assert first.is_file()
    assert second.is_file()


@compiling
def test_two_processes_at_once_compile_once(source, compiler):
    compiler.put('case "$*" in *-dM*) ;; *) sleep 1 ;; esac')
    said = {process.communicate(timeout=300)[0] for process in [start(source), start(source)]}
    assert said == {f"{kernels.library()}\n"}
    assert compiler.compiled() == 1


@compiling
def test_a_process_killed_while_it_compiles_stops_no_other_and_leaves_no_half_library(source, compiler, tmp_path):
    compiler.put('case "$*" in *-dM*) ;; *) sleep 60 ;; esac')
    process = start(source)
    deadline = time.monotonic() + 60
    while not compiler.calls.exists() or not compiler.compiled():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    compiler.put()
    assert files(tmp_path / "cache" / "sdxl-mindspore" / "kernels") == [".lock"]
    assert files(kernels.library().parent) == [".lock", ".so"]


@compiling
def test_a_file_system_without_locks_will_do(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(kernels.fcntl, "flock", refuse)
    assert kernels.library().is_file()


def test_no_compiler_is_said_once_with_a_remedy(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert kernels.library() is None
    assert kernels.library() is None
    assert "pip install ziglang" in warned(caplog)
    assert not (tmp_path / "cache").exists()


def test_which_compiler_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == "ziglang" or None)
    assert kernels.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    for name in ("clang++", "g++", "c++"):
        put(tmp_path / name, "exit 1")
        assert kernels.find_compiler() == [name]
    monkeypatch.setenv("CXX", "ccache g++-12")
    assert kernels.find_compiler() == ["ccache", "g++-12"]
    monkeypatch.setenv("CXX", " ")
    assert kernels.find_compiler() == ["c++"]


MESSAGE = "In file included from a.cpp:1:\n   from b.h:2,\na.cpp:3: error: no such thing\nmore"


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (f'echo "{MESSAGE}" >&2; exit 1', "no such thing"),
        ("exit 3", "exit status 3"),
        ("printf '\\377: broken' >&2; exit 1", "broken"),
        (None, "No such file"),
    ],
    ids=["message", "silent", "no text", "missing"],
)
def test_a_compiler_that_fails_is_said_by_the_first_line_that_tells_why(script, word, monkeypatch, tmp_path, caplog):
    path = tmp_path / "mine"
    if script:
        put(path, script)
    monkeypatch.setenv("CXX", f"{path} -flag")
    assert kernels.library() is None
    assert kernels.library() is None
    line = warned(caplog)
    assert f"{path} -flag: " in line
    assert word in line
    assert "\n" not in line
    assert "more" not in line


@compiling
def test_a_source_that_does_not_compile_leaves_nothing_behind(source, tmp_path, caplog):
    text = (source / "one.cpp").read_text()
    (source / "one.cpp").write_text("int one() { return nonsense; }\n")
    assert kernels.library() is None
    assert "nonsense" in warned(caplog)
    assert files(tmp_path / "cache" / "sdxl-mindspore" / "kernels") == [".lock"]
    assert not list((tmp_path / "temporary").iterdir())
    (source / "one.cpp").write_text(text)
    assert found_anew().is_file()


@compiling
def test_a_library_that_cannot_be_loaded_is_none(caplog):
    made = kernels.compiled(kernels.find_compiler())
    made.write_bytes(b"of another machine")
    assert kernels.library() is None
    assert made.name in warned(caplog)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@compiling
@pytest.mark.parametrize("why", ["no home", "a file in the way"])
def test_without_a_cache_it_is_kept_among_temporary_files_for_this_user_alone(why, monkeypatch, tmp_path):
    if why == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(kernels.Path, "home", no_home)
    else:
        (tmp_path / "cache").write_text("")
    mask = os.umask(0o002)
    try:
        made = kernels.library()
    finally:
        os.umask(mask)
    assert made.parent == tmp_path / "temporary" / f"sdxl-mindspore-{os.getuid()}"
    assert made.parent.stat().st_mode & 0o777 == 0o700
    assert found_anew() == made


@compiling
def test_what_zig_keeps_lies_with_the_kernels_unless_the_user_has_a_place_for_it(compiler, monkeypatch, tmp_path):
    compiler.put(f'echo "$ZIG_GLOBAL_CACHE_DIR" >"{tmp_path}/told"; ZIG_GLOBAL_CACHE_DIR={shlex.quote(ZIG)}')
    kernels.library()
    assert (tmp_path / "told").read_text() == f"{ZIG}\n"
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR")
    made = found_anew()
    assert (tmp_path / "told").read_text() == f"{made.parent / 'zig'}\n"


@pytest.mark.parametrize("whose", ["written by others", "owned by another", "a link"])
def test_a_temporary_folder_of_others_is_never_taken(whose, monkeypatch, tmp_path, caplog):
    (tmp_path / "cache").write_text("")
    place = tmp_path / "temporary" / f"sdxl-mindspore-{os.getuid()}"
    if whose == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    else:
        place.mkdir(mode=0o700)
    if whose == "written by others":
        place.chmod(0o777)
    elif whose == "owned by another":
        other = os.getuid() + 1
        monkeypatch.setattr(kernels.os, "getuid", lambda: other)
        place.rename(place.with_name(f"sdxl-mindspore-{other}"))
    monkeypatch.setenv("CXX", "c++")
    assert kernels.library() is None
    assert "XDG_CACHE_HOME" in warned(caplog)


def test_where_it_is_kept(monkeypatch, tmp_path):
    assert kernels.folder() == tmp_path / "cache" / "sdxl-mindspore" / "kernels"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):  # as the XDG specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert kernels.folder() == tmp_path / ".cache" / "sdxl-mindspore" / "kernels"


@compiling
def test_the_library_has_every_kernel_of_the_sources(monkeypatch):
    monkeypatch.undo()  # the real sources, in the place where everything else finds them
    made = ctypes.CDLL(str(found_anew()))
    names = [name for path in SOURCE.glob("*.cpp") for name in re.findall(r"^KERNEL\((\w+)\)", path.read_text(), re.M)]
    assert {"layer_norm", "adamw"} <= set(names)
    assert not [name for name in names if not hasattr(made, name)]
