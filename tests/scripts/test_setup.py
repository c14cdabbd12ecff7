"""scripts/setup.sh when things go wrong: one line, and the same command goes on. Python, pip, df, c++ are stand-ins."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "awk",
    "bash",
    "cat",
    "cp",
    "cut",
    "df",
    "dirname",
    "grep",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sh",
    "sleep",
    "tail",
    "tr",
)

# A Python that makes real (empty) environments, whose pip does what FAKE_PIP says and notes each call.
FAKE_PYTHON = f"""#!/bin/sh
real={sys.executable}
here=$(dirname "$0")
case "$1 $2" in
    "-m venv")
        "$real" -m venv --without-pip "$3" && mv "$3/bin/python" "$3/bin/real" && cp "$0" "$3/bin/python" && exit 0 ;;
    "-m pip")
        echo "$*" >>"$CALLS"
        set -- "$here"/../lib/python3*/site-packages
        case "$FAKE_PIP" in
            network) echo "WARNING: Failed to establish a new connection"; exit 1 ;;
            broken) echo "ERROR: IncompleteRead(5 bytes read)"; exit 1 ;;
            nothing) echo "ERROR: No matching distribution found for mindspore==2.8.0"; exit 1 ;;
            full) echo "Installing collected packages: a"; echo "OSError: [Errno 28] No space left on device"; exit 1 ;;
            hang) echo "Installing collected packages: a"; mkdir "$1/half-1.dist-info"; sleep 60; exit 1 ;;
            slow) sleep 2 ;;
            odd) echo "ERROR: something nobody has seen"; exit 1 ;;
        esac
        mkdir -p "$1/mindspore-2.8.0.dist-info"
        exit 0 ;;
    "-c import gm, mindspore") [ -z "$FAKE_MINDSPORE" ] && exit 0; echo "ImportError: $FAKE_MINDSPORE"; exit 1 ;;
    "-c from gm.kernels"*) echo compile >>"$CALLS"; exit "${{FAKE_COMPILER:-0}}" ;;
    "-c import ensurepip, venv") exit "${{FAKE_VENV:-0}}" ;;
esac
case "$here" in */.venv*) exec "$here/real" "$@" ;; esac
exec "$real" "$@"
"""


class Sandbox:
    """A copy of what setup.sh reads, and a PATH with nothing on it but what a test has put there."""

    def __init__(self, folder: Path):
        self.project, self.bin, self.calls = folder / "project", folder / "bin", folder / "calls"
        self.bin.mkdir()
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        shutil.copytree(ROOT / "requirements", self.project / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.project)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.put("c++", "#!/bin/sh\n")
        self.ascend = folder / "davinci_manager"  # in place of the driver's, which this machine may have
        script = self.project / "scripts" / "setup.sh"
        text = script.read_text()
        assert "/dev/davinci_manager" in text
        script.write_text(text.replace("/dev/davinci_manager", str(self.ascend)))
        self.environment = {"PATH": str(self.bin), "CALLS": str(self.calls), "HOME": str(folder), "LC_ALL": "C"}

    def put(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.project / "scripts" / "setup.sh"), *arguments],
            env=self.environment | environment,
            cwd=self.bin,  # any folder but the project's
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def noted(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def pip_calls(self) -> list[str]:
        return [call for call in self.noted() if call != "compile"]

    def works(self) -> bool:
        """The same command again does it, and once more finds nothing left to do."""
        first, calls = self.run(), len(self.pip_calls())
        second = self.run()
        return (first.returncode, second.returncode, second.stdout) == (0, 0, "") and len(self.pip_calls()) == calls


@pytest.fixture
def sandbox(tmp_path):
    sandbox = Sandbox(tmp_path)
    sandbox.put("python3.11", FAKE_PYTHON)
    return sandbox


def one_line(result: subprocess.CompletedProcess, *words: str) -> bool:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
    return True


def test_installs_with_the_pins_and_then_has_nothing_to_do(sandbox):
    assert sandbox.run().returncode == 0
    (call,) = sandbox.pip_calls()
    assert f"--constraint {sandbox.project}/.venv/constraints.txt" in call
    assert call.endswith(f"--editable {sandbox.project}")
    started = time.monotonic()
    again = sandbox.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert time.monotonic() - started < 2
    assert len(sandbox.pip_calls()) == 1


def test_no_python(sandbox):
    (sandbox.bin / "python3.11").unlink()
    result = sandbox.run()
    assert result.returncode == 1
    assert one_line(result, "Python 3.10", "PYTHON=")
    assert not (sandbox.project / ".venv").exists()


def test_a_shim_without_its_python_and_a_python_too_old_are_passed_over(sandbox):
    sandbox.put("python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    sandbox.put("python3.12", "#!/bin/sh\nexit 1\n")
    sandbox.put("python3", FAKE_PYTHON)
    assert sandbox.works()


def test_a_python_of_ones_own_choice(sandbox):
    sandbox.put("python3.11", "#!/bin/sh\nexit 1\n")
    chosen = sandbox.bin / "a folder" / "python"
    chosen.parent.mkdir()
    chosen.write_text(FAKE_PYTHON)
    chosen.chmod(0o755)
    assert one_line(sandbox.run(PYTHON=str(sandbox.bin / "missing")), "missing")
    assert sandbox.run(PYTHON=str(chosen)).returncode == 0


def test_python_without_venv(sandbox):
    result = sandbox.run(FAKE_VENV="1")
    assert result.returncode == 1
    assert one_line(result, "python3.11", "venv package")


def test_full_disk_is_told_before_anything_is_written(sandbox):
    sandbox.put("df", "#!/bin/sh\necho Filesystem blocks used free\necho /dev/a 9000000 8000000 1000000 90% /\n")
    result = sandbox.run()
    assert result.returncode == 1
    assert one_line(result, "5 GB needed", "976 MB free")
    assert not (sandbox.project / ".venv").exists()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("network", ("cannot reach the package index", "run the same command again", "setup.log")),
        ("broken", ("broken", "run the same command again", "setup.log")),
        ("nothing", ("mindspore==2.8.0", "setup.log")),
        ("full", ("disk is full", "run the same command again", "setup.log")),
        ("odd", ("the installation failed", "setup.log")),
    ],
)
def test_a_failing_pip_is_one_line_and_the_same_command_goes_on(sandbox, trouble, words):
    result = sandbox.run(FAKE_PIP=trouble)
    assert result.returncode == 1
    assert one_line(result, *words)
    assert sandbox.works()


def test_a_broken_download_is_fetched_once_more_past_the_cache(sandbox):
    sandbox.run(FAKE_PIP="broken")
    first, second = sandbox.pip_calls()
    assert "--no-cache-dir" not in first
    assert "--no-cache-dir" in second


def test_a_mindspore_that_does_not_start(sandbox):
    result = sandbox.run(FAKE_MINDSPORE="libgomp.so.1: cannot open shared object file")
    assert result.returncode == 1
    assert one_line(result, "libgomp.so.1", "setup.log")
    assert sandbox.works()


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_installing(sandbox, stop):
    process = sandbox.start(FAKE_PIP="hang")
    wait_for(sandbox.project, ".venv/lib/python3*/site-packages/half-1.dist-info")
    os.killpg(process.pid, stop)
    _, err = process.communicate(timeout=10)  # ends only when pip, which holds the pipe too, has ended
    assert process.returncode == 130
    assert err.strip() == "set-up interrupted: run the same command again to go on"
    assert sandbox.works()
    assert not list(sandbox.project.glob(".venv/lib/python3*/site-packages/half-1.dist-info"))


def test_killed_while_installing(sandbox):
    process = sandbox.start(FAKE_PIP="hang")
    wait_for(sandbox.project, ".venv/lib/python3*/site-packages/half-1.dist-info")
    pip_group = next(iter(children(process.pid)))
    process.kill()
    os.killpg(pip_group, signal.SIGKILL)
    process.communicate(timeout=10)
    assert sandbox.works()
    assert not list(sandbox.project.glob(".venv/lib/python3*/site-packages/half-1.dist-info"))


def children(pid: int) -> list[int]:
    """Process ids of the children that lead a group of their own."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    return [child for child, parent, group in rows if parent == pid and group == child]


def test_two_at_once_install_once(sandbox):
    both = [sandbox.start(FAKE_PIP="slow") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(sandbox.pip_calls()) == 1
    assert sum("waiting for it" in output for output in outputs) == 1


def test_a_damaged_environment_is_repaired(sandbox):
    sandbox.run()
    (package,) = sandbox.project.glob(".venv/lib/python3*/site-packages/mindspore-2.8.0.dist-info")
    package.rmdir()
    assert sandbox.works()
    assert package.exists()
    (sandbox.project / ".venv" / "bin" / "python").unlink()
    assert sandbox.works()


def test_new_requirements_and_a_moved_folder_install_again(sandbox):
    sandbox.run()
    with (sandbox.project / "pyproject.toml").open("a") as file:
        file.write("# another requirement\n")
    assert sandbox.works()
    assert len(sandbox.pip_calls()) == 2
    sandbox.project = sandbox.project.rename(sandbox.project.with_name("elsewhere"))
    assert sandbox.works()
    assert len(sandbox.pip_calls()) == 3


def test_extras_are_added_and_stay(sandbox):
    sandbox.run()
    sandbox.run("--extras", "test,reference")
    assert sandbox.pip_calls()[-1].endswith("[reference,test]")
    sandbox.run("--extras", "test")
    sandbox.run()
    assert len(sandbox.pip_calls()) == 2


def test_without_a_compiler_one_comes_along_and_compiles_at_once(sandbox):
    (sandbox.bin / "c++").unlink()
    assert sandbox.run("--extras", "test").returncode == 0
    pip, then = sandbox.noted()
    assert pip.endswith(f"--editable {sandbox.project}[compiler,test]")
    assert then == "compile"
    again = sandbox.run("--extras", "test")
    assert (again.returncode, again.stdout, len(sandbox.noted())) == (0, "", 2)


def test_kernels_that_do_not_compile_are_no_failure(sandbox):
    (sandbox.bin / "c++").unlink()
    assert sandbox.run(FAKE_COMPILER="1").returncode == 0
    assert sandbox.works()


@pytest.mark.parametrize("there", ["c++", "g++", "clang++", "CXX", "Ascend"])
def test_with_a_compiler_or_ascend_devices_none_comes_along(sandbox, there):
    (sandbox.bin / "c++").unlink()
    if there == "CXX":
        sandbox.environment["CXX"] = "ccache mine"
    elif there == "Ascend":
        sandbox.ascend.touch()
    else:
        sandbox.put(there, "#!/bin/sh\n")
    assert sandbox.works()
    (call,) = sandbox.noted()
    assert call.endswith(f"--editable {sandbox.project}")


def test_a_compiler_that_goes_away_is_replaced_and_one_that_comes_back_changes_nothing(sandbox):
    sandbox.run()
    (sandbox.bin / "c++").unlink()
    assert sandbox.works()
    assert sandbox.pip_calls()[-1].endswith("[compiler]")
    sandbox.put("c++", "#!/bin/sh\n")
    assert sandbox.works()
    assert len(sandbox.pip_calls()) == 2


def test_another_mindspore_in_another_environment(sandbox):
    assert sandbox.run("--venv", str(sandbox.project / ".venv-new"), "--mindspore", "2.10.0").returncode == 0
    pins = (sandbox.project / ".venv-new" / "constraints.txt").read_text().splitlines()
    assert [line for line in pins if line.startswith("mindspore==")] == ["mindspore==2.10.0"]


def test_something_else_in_the_way_is_left_alone(sandbox):
    (sandbox.project / ".venv").mkdir()
    (sandbox.project / ".venv" / "mine").write_text("mine")
    assert one_line(sandbox.run(), ".venv is in the way")
    assert (sandbox.project / ".venv" / "mine").exists()


def test_unknown_argument(sandbox):
    result = sandbox.run("--fresh")
    assert result.returncode == 2
    assert one_line(result, "--fresh")


def test_every_script_parses():
    for script in [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]:
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, script
