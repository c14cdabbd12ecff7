"""Many devices, one result: losses, weights, averages and state do not depend on how the work is divided."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm.training.run_folder import RunFolder
from gm.training.shared_state import open_state
from gm.training.state import read_progress
from gm.weights.files import open_weights
from tests.parallel.ranks import ROOT, start, wait

pytestmark = [pytest.mark.slow, pytest.mark.alone]

STEPS, OVERFLOW = 4, 1  # of worker.py
WORKER = Path(__file__).with_name("worker.py")
ALONE = ("plain", "accumulated", "half")
# Four as one group, or where a name ends so two by two.
BY_TWO = ("accumulated", "zero1_accumulated", "zero2", "half", "zero2_half", "zero3_accumulated", "tensor")
BY_FOUR = ("plain", "zero1", "zero2_2x2", "zero3")


def run(folder: Path, size: int, cases: list[str], code: int = 0) -> None:
    logs = folder / "logs"
    codes = wait(start(logs, size, [WORKER, folder, *cases]))
    assert codes[0] == code, (logs / "log_0.txt").read_text()[-2000:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """By number of ranks: what each of them left of its cases; what four saved half way, two went on from."""
    found = {size: tmp_path_factory.mktemp(f"by_{size}") for size in (1, 2, 4)}
    run(found[1], 1, list(ALONE))
    run(found[4], 4, [*BY_FOUR, "communicate", "interrupt", "zero3_killed"], code=1)
    middle = "state/step_2"
    resumed = f"zero1={found[4] / 'zero3_killed' / middle}"
    run(found[2], 2, [*BY_TWO, resumed, f"zero3={found[1] / 'plain' / middle}", "hang"], code=1)
    run(found[1], 1, [f"plain_again={found[4] / 'zero2_2x2' / middle}"])
    return found


def reference(name: str) -> str:
    """The case of one process that does the same."""
    return next((kind for kind in ("accumulated", "half") if kind in name), "plain")


def numbers(case: Path) -> list[np.ndarray]:
    """(steps, 3 or 5): weighted loss, plain loss, gradient norm, loss scale, steps skipped so far; by rank."""
    return [np.load(path)["numbers"] for path in sorted(case.glob("*.npz"))]


def contents(case: Path) -> dict[str, np.ndarray]:
    """All that the last checkpoint has, whole."""
    found = {}
    for name in ("unet", "unet_ema"):
        with open_weights(case / "weights" / f"{name}_4.ckpt") as file:
            found |= {f"{name}: {key}": file.read(key) for key in file.names()}
    state = case / "state" / "step_4"
    shapes = json.loads((state / "state.json").read_text()).get("shapes", {})
    with open_state(state, shapes) as file:
        return found | {key: file.read(key) for key in file.names()}


def equal(case: Path, other: Path, weights: float) -> None:
    ours, theirs = contents(case), contents(other)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=weights, err_msg=f"{case.name} {name}")


@pytest.mark.parametrize(("size", "name"), [(2, name) for name in BY_TWO] + [(4, name) for name in BY_FOUR])
def test_the_result_is_that_of_one_device(folders, size, name):
    case, alone = folders[size] / name, folders[1] / reference(name)
    half = "half" in name
    (expected,), found = numbers(alone), numbers(case)
    assert len(found) == size
    unit = np.ones_like(expected[:, :2])
    if half:
        unit[OVERFLOW, 0] = expected[OVERFLOW, 0]  # a loss of hundreds of thousands
    for one in found:
        np.testing.assert_array_equal(one, found[0])  # all ranks know the same numbers
        np.testing.assert_allclose(one[:, :2] / unit, expected[:, :2] / unit, rtol=0, atol=2e-3 if half else 1e-5)
    equal(case, alone, 1e-3 if half else 1e-4)


@pytest.mark.parametrize(("size", "name"), [(1, "half"), (2, "half"), (2, "zero2_half")])
def test_a_gradient_that_overflows_on_one_device_is_skipped_by_all(folders, size, name):
    """The sample of the spike is in the part of the first device alone."""
    for one in numbers(folders[size] / name):
        np.testing.assert_array_equal(np.isfinite(one[:, 2]), np.arange(STEPS) != OVERFLOW)
        np.testing.assert_array_equal(one[:, 3], [256, 256, 128, 128])
        np.testing.assert_array_equal(one[:, 4], [0, 1, 1, 1])


def test_a_rank_that_hangs_in_its_program_is_named_and_what_was_saved_stays(folders):
    told = [(folders[2] / "logs" / f"log_{rank}.txt").read_text() for rank in range(2)]
    assert re.search(r"error: rank 1 \(.*\) hangs: no step has begun or ended for 23 s", told[0])
    folder = folders[2] / "hang"
    assert (folder / "latest").read_text() == "step_3\n"
    assert read_progress(RunFolder(folder, folder / "state" / "step_3")).step == 3
    assert not list(folder.glob("done_*"))


@pytest.mark.parametrize(("size", "name"), [(2, "zero1"), (2, "zero3"), (1, "plain_again")])
def test_a_state_goes_on_with_another_number_of_devices_and_another_stage(folders, size, name):
    case, alone = folders[size] / name, folders[1] / "plain"
    for one in numbers(case):
        np.testing.assert_allclose(one[:, :2], numbers(alone)[0][2:, :2], rtol=0, atol=1e-5)
    equal(case, alone, 1e-4)


@pytest.mark.parametrize("group", ["fsdp", "data", "all"])
def test_groups_add_up_divide_and_gather_as_numpy_does(folders, group):
    given = [np.random.default_rng(rank).standard_normal(8).astype(np.float32) for rank in range(4)]
    for rank in range(4):
        found = np.load(folders[4] / "communicate" / f"{group}_{rank}.npz")
        own = [given[member] for member in found["ranks"]]
        total = np.sum(own, axis=0)
        np.testing.assert_allclose(found["sum"], total, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found["part"], np.split(found["sum"], len(own))[found["index"]])
        np.testing.assert_array_equal(found["row"], np.concatenate(own))


def test_a_state_in_parts_is_joined_into_one(folders):
    case = folders[4] / "zero2_2x2"
    before, state = contents(case), case / "state" / "step_4"
    assert len(list(state.glob("*.ckpt"))) == 3
    tool = [sys.executable, ROOT / "tools" / "model_conversion" / "join_state.py", "--state", state]
    assert "joined 2 parts" in subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    assert [path.name for path in state.glob("*.ckpt")] == ["optimizer.ckpt"]
    after = contents(case)
    assert set(after) == set(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    again = subprocess.run(tool, capture_output=True, text=True)
    assert (again.returncode, again.stderr.strip()) == (1, f"error: {state} is whole already")


def test_one_that_is_asked_to_end_ends_all_after_the_same_step(folders):
    folder = folders[4] / "interrupt"
    done = [int((folder / f"done_{rank}").read_text()) for rank in range(4)]
    assert done == [done[0]] * 4
    assert done[0] < 30
    assert (folder / "latest").read_text().strip() == f"step_{done[0]}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, done[0] + 1))  # of one process
    assert lines[0]["lr"] == pytest.approx(4 * 1e-5)  # --scale_lr counts the samples of all devices
    assert lines[-1]["images_per_second"] == pytest.approx(4 / lines[-1]["seconds"], rel=0.01)


def test_four_devices_keep_a_quarter_each(folders):
    whole = np.load(folders[1] / "plain" / "0.npz")["kept"]
    kept = [np.load(path)["kept"] for path in (folders[4] / "zero3").glob("*.npz")]
    assert len(kept) == 4
    assert max(kept) <= 0.30 * whole
