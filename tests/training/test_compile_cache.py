"""A training that finds its graph kept starts where it would have started, and no other training finds it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def losses(folder: Path | None, **facts: float) -> tuple[list[list[float]], list[bool]]:
    """Losses and norms of a few steps in a process of its own, and which graphs came from ``folder``."""
    command = [sys.executable, Path(__file__), str(folder or ""), json.dumps(facts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the graph of the plain training, and the numbers of that training."""
    folder = tmp_path_factory.mktemp("graphs")
    return folder, losses(folder)


def test_the_second_start_takes_the_graph_and_the_numbers_stay(kept):
    folder, (numbers, hits) = kept
    assert not any(hits)
    assert losses(folder) == (numbers, [True])


def test_weights_are_no_part_of_the_graph(kept):
    numbers, hits = losses(kept[0], seed=5)
    assert (hits, numbers) == ([True], losses(None, seed=5)[0])


@pytest.mark.parametrize(
    "change", [{"max_norm": 0.5}, {"ema_decay": 0.5}, {"weight_decay": 0.5}, {"side": 16}, {"scale": 0.18215}], ids=str
)
def test_a_changed_training_never_meets_the_old_graph(kept, change):
    folder, (plain, _) = kept
    numbers, hits = losses(folder, **change)
    assert hits == [False]
    if "ema_decay" in change:  # the average has no part in the losses
        assert numbers == plain
    else:
        assert numbers != plain
    if "side" in change:
        assert numbers == losses(None, **change)[0]


def main(folder: str, facts: str) -> None:
    import mindspore as ms
    import numpy as np

    from gm import compilation
    from gm.training.adamw import AdamW
    from gm.training.ema import EMA
    from gm.training.loss import DiffusionLoss
    from gm.training.step import TrainStep, tensors
    from tests.training.small_run import conftest

    ms.set_context(mode=ms.GRAPH_MODE)
    plain = {"seed": 0, "max_norm": 0.1, "ema_decay": 0.9, "weight_decay": 0.1, "side": 8, "scale": 0.13025}
    facts = plain | json.loads(facts)
    parts = conftest()
    network = parts.SmallUNet(facts["seed"])
    optimizer = AdamW(network.trainable_params(), weight_decay=facts["weight_decay"])
    average = EMA(network.trainable_params(), facts["ema_decay"])
    step = TrainStep(DiffusionLoss(network, facts["scale"]), optimizer, facts["max_norm"], average)
    step.set_train()
    compilation.keep_in(folder or None)
    rate, rows = ms.Tensor(np.float32(0.01)), []
    for seed in range(STEPS):
        rows.append(step.take([tensors(parts.batch_of(2, seed, facts["side"]))], rate).fetch()[:3])
    print(json.dumps([rows, [made.from_cache for made in compilation.done()]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
