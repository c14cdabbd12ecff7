"""train.py: quick to answer, one line for every error, and each task handed to its room."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gm.config import Config
from gm.errors import SuiteError
from gm.launch import Device

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TRAIN), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def door(load_door):
    return load_door("train.py")


def test_help_is_quick_and_shows_the_commands():
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        begin = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] < 2:
            break
    assert done.returncode == 0
    assert "python train.py --config configs/training/sd_xl_base_finetune_910b.yaml" in done.stdout
    assert "--snr_gamma" in done.stdout
    assert min(seconds) < 2


def test_a_command_line_that_cannot_work_is_refused_before_mindspore_is_imported():
    script = (
        "import sys, runpy; sys.argv = ['train.py', '--data_path']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print(sorted({'mindspore', 'transformers', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--weigth", "x"], 2, "error: unknown flag --weigth: did you mean --weight? (--help lists all)"),
        ([], 2, "error: task train needs --data_path, the folder of pictures and captions"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(arguments, code, error):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_as_well():
    done = run("--weigth", "x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "did you mean --weight?" in done.stderr


def test_print_config_needs_no_data():
    done = run("--config", "configs/training/tiny_sdxl.yaml", "--print_config")
    assert done.returncode == 0
    assert "configs/inference/tiny_sdxl.yaml" in done.stdout


@pytest.mark.parametrize(
    ("task", "module", "function"),
    [
        ("train", "gm.training.loop", "train"),
        ("txt2img", "gm.training.loop", "train"),
        ("check", "gm.data.check", "check"),
        ("cache", "gm.data.cache", "build"),
    ],
)
def test_each_task_goes_to_its_room_with_the_whole_configuration(door, monkeypatch, caplog, task, module, function):
    def start(launch, together):
        started.append(launch)
        return Device("CPU")

    received, started = [], []
    room, _, name = module.rpartition(".")
    fake = SimpleNamespace(**{function: lambda config, *rest, **more: received.append(config)})
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(f"{room}.{name}", fake, raising=False)
    monkeypatch.setattr("gm.launch.start", start)
    with caplog.at_level("INFO"):
        door.main(["--task", task, "--data_path", "D", "--seed", "9", "--threads", "2", "--attention", "flash"])
    (config,) = received
    assert isinstance(config, Config)
    assert (config.data.path, config.train.seed) == ("D", 9)
    assert started == ([] if task == "check" else [config.launch])  # checking pictures needs no device
    told = [record.getMessage() for record in caplog.records if record.name == "gm.models.attention"]
    assert [line.split(":")[:2] for line in told] == [["attention", " math, in pieces"]] * len(started)


def test_nothing_is_done_on_a_device_that_cannot_start(door, monkeypatch):
    def fail(launch, together):
        raise SuiteError("no such device")

    monkeypatch.setattr("gm.launch.start", fail)
    loop = SimpleNamespace(train=lambda *given: pytest.fail("the task ran"))
    monkeypatch.setitem(sys.modules, "gm.training.loop", loop)
    with pytest.raises(SuiteError, match="no such device"):
        door.main(["--data_path", "D"])


@pytest.mark.parametrize("task", ["train", "cache"])
def test_pictures_of_a_class_are_drawn_before_the_task(door, monkeypatch, task):
    done = []
    tasks = {"train": ("gm.training.loop", "train"), "cache": ("gm.data.cache", "build")}
    drawing = ("gm.sampling.class_images", "draw_lacking")
    for module, function in (tasks[task], drawing):
        room, _, name = module.rpartition(".")
        fake = SimpleNamespace(**{function: lambda *given, name=function, **more: done.append(name)})
        monkeypatch.setitem(sys.modules, module, fake)
        monkeypatch.setattr(f"{room}.{name}", fake, raising=False)
    monkeypatch.setattr("gm.launch.start", lambda launch, together: Device("CPU"))
    door.main(["--task", task, "--data_path", "D"])
    prior = ["--with_prior_preservation", "--class_data_dir", "C", "--class_prompt", "a dog"]
    door.main(["--task", task, "--data_path", "D", *prior])
    assert done == [tasks[task][1], "draw_lacking", tasks[task][1]]
