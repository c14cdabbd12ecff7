"""The quickstart's driver with stand-ins for the commands: what it runs again, what it does not, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.tiny import quickstart
from gm.errors import SuiteError

ROOT = Path(quickstart.ROOT)


def writes(path: Path, text: str, name: str = "first", inputs: tuple[Path, ...] = ()) -> quickstart.Phase:
    """A phase that appends to a file, so that running it twice shows."""
    code = f"open({str(path)!r}, 'a').write({text!r})"
    return quickstart.Phase(name, "writes", ("-c", code), inputs, (path,))


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Perform phases as the driver does; gives the names of those that really ran."""
    monkeypatch.setattr(quickstart, "CODE", ())

    def perform(*phases: quickstart.Phase) -> list[str]:
        records, ran = quickstart.Records(tmp_path / "phases"), []
        for phase in phases:
            if not records.done(phase):
                quickstart.perform(phase, tmp_path, records)
                ran.append(phase.name)
        return ran

    return perform


def test_a_finished_phase_is_not_run_again(run, tmp_path):
    phase = writes(tmp_path / "a", "x")
    assert run(phase) == ["first"]
    assert run(phase) == []
    assert (tmp_path / "a").read_text() == "x"


def test_another_command_starts_from_nothing(run, tmp_path):
    run(writes(tmp_path / "a", "x"))
    assert run(writes(tmp_path / "a", "y")) == ["first"]
    assert (tmp_path / "a").read_text() == "y"


def test_a_changed_input_reaches_what_depends_on_it(run, tmp_path):
    first, second = writes(tmp_path / "a", "x"), writes(tmp_path / "b", "z", "second", (tmp_path / "a",))
    assert run(first, second) == ["first", "second"]
    assert run(writes(tmp_path / "a", "y"), second) == ["first", "second"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("cut off")])
def test_a_lost_or_damaged_output_is_made_again(run, tmp_path, damage):
    phase = writes(tmp_path / "a", "x")
    run(phase)
    damage(tmp_path / "a")
    assert run(phase) == ["first"]
    assert (tmp_path / "a").read_text() == "x"


def test_a_failing_phase_names_itself_its_command_and_its_log(run, tmp_path):
    phase = quickstart.Phase("merge", "fails", ("-c", "print('no luck'); raise SystemExit(3)"), (), (tmp_path / "a",))
    with pytest.raises(SuiteError, match=r"phase merge failed \(exit code 3\): python -c .*logs/merge.log") as error:
        run(phase)
    assert "\n" not in str(error.value)
    assert (tmp_path / "logs" / "merge.log").read_text() == "no luck\n"
    assert run(writes(tmp_path / "a", "x", "merge")) == ["merge"]


def test_a_phase_that_leaves_nothing_has_failed(run, tmp_path):
    with pytest.raises(SuiteError, match=r"\(no .*/a\)"):
        run(quickstart.Phase("merge", "does nothing", ("-c", ""), (), (tmp_path / "a",)))


def test_an_interrupted_training_is_resumed(run, tmp_path):
    """The first attempt saves a state and stops; the second is told to go on from it."""
    unet = tmp_path / "finetune" / "unet"
    code = f"""
import pathlib, sys
unet = pathlib.Path({str(unet)!r})
if sys.argv[1:] == ["--resume", "latest"]:
    unet.write_text("done")
else:
    unet.parent.mkdir()
    (unet.parent / "latest").write_text("step_3")
"""
    phase = quickstart.Phase("train", "trains", ("-c", code), (), (unet,))
    with pytest.raises(SuiteError):
        run(phase)
    assert run(phase) == ["train"]
    assert unet.read_text() == "done"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_command_and_is_one_line(tmp_path, stop):
    saved = tmp_path / "saved"
    command = f"""
import time
try:
    print("working", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    open({str(saved)!r}, "w").write("state")
    print("the command's own words")
"""
    driver = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from demo.tiny import quickstart
from gm.errors import run_door
quickstart.plan = lambda out: [quickstart.Phase("train", "waits", ("-c", {command!r}), (), (out / "never",))]
run_door(quickstart.main, ["--out", {str(tmp_path)!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    while process.stdout.readline() != "working\n":
        assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, stop)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "error: interrupted: run the same command again to go on\n"
    assert "own words" not in out
    assert saved.read_text() == "state"
    assert "own words" in (tmp_path / "logs" / "train.log").read_text()
    assert "seconds" not in json.loads((tmp_path / "phases" / "train.json").read_text())


def test_a_second_quickstart_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(quickstart.signal, "signal", lambda *_: None)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SuiteError, match="another quickstart"):
            quickstart.main(["--out", str(tmp_path)])


def test_a_folder_that_holds_the_repository_is_refused():
    with pytest.raises(SuiteError, match="holds the repository"):
        quickstart.main(["--out", str(ROOT)])


def test_the_plan_only_needs_what_an_earlier_phase_has_left(tmp_path):
    """Inputs are outputs of earlier phases or lie in the repository, and every output belongs to the folder."""
    made = {tmp_path / "prompts.txt"}
    for phase in quickstart.plan(tmp_path):
        for path in phase.inputs:
            assert path in made or path.is_relative_to(ROOT), f"{phase.name} reads {path}"
        assert all(path.is_relative_to(tmp_path) for path in phase.outputs)
        made |= set(phase.outputs)


def test_waiting_for_a_command_that_does_not_stop_has_an_end(tmp_path, monkeypatch):
    read_some, reads = quickstart.read_some, []

    def interrupted_at_first(channel: int) -> bytes:
        reads.append(read_some(channel))
        if len(reads) == 1:
            raise KeyboardInterrupt
        return reads[-1]

    monkeypatch.setattr(quickstart, "SECONDS_TO_STOP", 0.5)
    monkeypatch.setattr(quickstart, "read_some", interrupted_at_first)
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('x'); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        quickstart.execute(["-c", stubborn], tmp_path / "log")
    assert time.monotonic() - started < 30
