"""The documented commands, as written, with two and four processes: one result whoever starts them, and no mess."""

import os
import re
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.parallel import rank_table
from tests.parallel.launching import (
    CACHE_SCRIPT,
    ROOT,
    Job,
    by_mpirun,
    by_msrun,
    by_table,
    flags,
    free_port,
    log_of,
    losses,
    run,
    saved,
    taken_ports,
    weights,
)

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PICTURES = 520  # three shards of the cache
COLOURS = ("red", "green", "blue", "yellow")
STEPS = 4
BOUND = 60  # seconds in which a job has ended after a fault
ENDLESS = 100_000  # steps


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_random_model, families):
    """A folder with pictures, small weights and rank tables for CPU processes on one and on two servers."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "data").mkdir()
    rng = np.random.default_rng(3)
    for number in range(PICTURES):
        pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"a {COLOURS[number % 4]} circle")
    unet = replace(families["sd-1"].unet, channels=(32,), down_depths=((1,),), mid_depth=None, up_depths=((0, 0),))
    write_random_model(folder / "small.ckpt", replace(families["sd-1"], unet=unet))
    tables = {cards: rank_table.make("10.0.0.1", range(cards), addresses(1, cards)) for cards in (2, 4)}
    for cards, table in tables.items():
        table.write(folder / f"hccl_{cards}p.json")
    servers = [rank_table.make(f"127.0.0.{number}", [0], addresses(number, 1)) for number in (1, 2)]
    rank_table.merge(servers).write(folder / "hccl_2s.json")
    return folder


def addresses(server, cards) -> dict[int, str]:
    return {card: f"192.168.{server}.{card + 1}" for card in range(cards)}


@pytest.fixture(scope="module")
def cached(place):
    """The cache, made by four ranks of the script."""
    command = [*by_table(place, "hccl_4p.json", 0, 4, 4, CACHE_SCRIPT), *flags(place, "cache", kept=False)]
    assert "ranks 0 to 3 of 4: logs in logs_for_cache" in run(place / "caching", *command)
    return place


def shards(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_four_ranks_cache_the_same_bytes_as_one_process(cached, tmp_path):
    recipe = ROOT / "configs/training/sd_xl_base_finetune_910b.yaml"
    command = [sys.executable, ROOT / "train.py", "--task", "cache", "--data_path", cached / "data", "--config", recipe]
    run(tmp_path, *command, *flags(cached, "cache", kept=False), "--cache_path", tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "latents").glob("*.safetensors"))) == 3
    assert shards(cached / "cache") == shards(tmp_path / "cache")
    told = [re.search(r"(\d+) and (\d+) encoded now", log_of(cached / "caching", rank)) for rank in range(4)]
    counts = [[int(count) for count in found.groups()] for found in told if found]
    assert np.sum(counts, axis=0).tolist() == [PICTURES, len(COLOURS) + 1]
    assert sum(any(made) for made in counts) > 1


class Servers:
    """The script on two servers, with one rank each, at one port; ``own``: flags of the second alone."""

    def __init__(self, place, name, port, own=()):
        self.folder = place / name
        second = [*by_table(place, "hccl_2s.json", 1, 2, 2), *flags(place, name), *own]
        first = [*by_table(place, "hccl_2s.json", 0, 1, 2), *flags(place, name)]
        with (
            Job(self.folder, *second, MS_SCHED_PORT=port) as later,
            Job(self.folder, *first, MS_SCHED_PORT=port) as job,
        ):
            self.output, _ = job.process.communicate(timeout=150)
            self.codes = [later.ended(within=20), job.process.returncode]
        self.logs = [log_of(self.folder, rank) for rank in range(2)]


@pytest.fixture(scope="module")
def by_scripts(cached):
    """What two ranks of the script make, each on a server of its own, at a port that something else has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        servers = Servers(cached, "script", taken.getsockname()[1])
    assert servers.codes == [0, 0], servers.logs
    assert "rank 0 of 2 by rank table" in servers.output
    return losses(cached, "script"), weights(cached, "script", STEPS)


def test_the_scripts_of_two_servers_train_together(by_scripts):
    found, _ = by_scripts
    assert len(found) == STEPS
    assert all(np.isfinite(found))


def test_msrun_gives_the_same_numbers_and_ends_when_a_rank_is_killed_in_a_step(by_scripts, cached):
    steps = cached / "runs" / "msrun" / "metrics.jsonl"
    with Job(cached / "by_msrun", *by_msrun(cached), *flags(cached, "msrun", steps=ENDLESS)) as job:
        job.wait(lambda: steps.exists() and len(steps.read_text().splitlines()) > STEPS)
        pid = job.pid(1)
        os.kill(pid, signal.SIGKILL)
        assert job.ended(within=BOUND) != 0
    assert "rank 0 of 2 by msrun" in job.output
    assert f"error: rank 1 ({socket.gethostname()}, process {pid}) was lost" in job.output
    assert saved(cached, "msrun") >= STEPS
    assert losses(cached, "msrun")[:STEPS] == by_scripts[0]
    found = weights(cached, "msrun", STEPS)
    assert found.keys() == by_scripts[1].keys()
    assert all(np.array_equal(found[name], by_scripts[1][name]) for name in found)


def test_mpirun_of_four_gives_the_same_result(by_scripts, cached):
    command = [*by_mpirun(cached, 4), *flags(cached, "mpirun", batch=1), "--param_fp16", "False"]
    output = run(cached / "by_mpirun", *command)
    assert "rank 0 of 4 by mpirun" in output
    assert "[rank" not in output  # the others have nothing to worry about
    np.testing.assert_allclose(losses(cached, "mpirun"), by_scripts[0], rtol=0, atol=1e-5)
    found = weights(cached, "mpirun", STEPS)
    assert found.keys() == by_scripts[1].keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, by_scripts[1][name], rtol=0, atol=1e-4, err_msg=name)


def two_ranks(place, name, *more, **options) -> list:
    return [*by_table(place, "hccl_2p.json", 0, 2, 2), *flags(place, name, **options), *more]


def test_a_rank_that_is_killed_while_it_starts_ends_the_job(cached):
    with Job(cached / "starting", *two_ranks(cached, "start")) as job:
        job.wait(lambda: "rank 0 of 2" in log_of(job.folder, 0))  # they have met, and import MindSpore
        pid = job.pid(1)
        os.kill(pid, signal.SIGKILL)
        assert job.ended(within=BOUND) == 128 + signal.SIGKILL
    assert "error: rank 1 was ended by SIGKILL" in job.output
    assert f"error: rank 1 ({socket.gethostname()}, process {pid}) was lost" in log_of(job.folder, 0)
    assert not (cached / "runs" / "start").exists()


def test_a_rank_that_is_killed_while_all_compile_ends_the_job_of_mpirun(cached):
    log = cached / "runs" / "compile" / "log.txt"
    command = [*by_mpirun(cached, 2), *flags(cached, "compile", kept=False)]
    with Job(cached / "compiling", *command) as job:
        job.wait(lambda: log.exists() and "compiling the step" in log.read_text())
        os.kill(job.pid(1), signal.SIGKILL)
        assert job.ended(within=BOUND) != 0
    assert re.search(r"rank 1 \(.*\) was lost|process rank 1 .* exited on signal 9", job.output)
    assert not log.with_name("latest").exists()


def test_a_run_that_is_interrupted_killed_while_saving_and_stopped_goes_on_each_time(by_scripts, cached):
    run = cached / "runs" / "again"
    with Job(cached / "interrupted", *two_ranks(cached, "again", steps=ENDLESS)) as job:
        job.wait((run / "latest").exists)
        os.killpg(job.process.pid, signal.SIGINT)  # Ctrl-C
        assert job.ended(within=BOUND) == 0, job.output
    interrupted = saved(cached, "again")
    assert f"interrupted after step {interrupted} of {ENDLESS}" in job.output
    assert "found in the compile cache" in job.output  # the ranks of the two servers have compiled it

    with Job(cached / "saving", *two_ranks(cached, "again", "--resume", "latest", steps=ENDLESS)) as job:
        job.wait(lambda: saved(cached, "again") > interrupted)
        os.kill(stop_in_save(job, run), signal.SIGKILL)
        assert job.ended(within=BOUND) == 128 + signal.SIGKILL
    assert "error: rank 0 was ended by SIGKILL" in job.output
    assert re.search("error: rank 0 .*was lost", log_of(job.folder, 1))
    killed = saved(cached, "again")
    assert killed > interrupted

    more = ["--resume", "latest", "--rank_timeout", "8"]
    with Job(cached / "stopped", *two_ranks(cached, "again", *more, steps=ENDLESS)) as job:
        job.wait(lambda: saved(cached, "again") > killed)
        pid = job.pid(1)
        os.kill(pid, signal.SIGSTOP)
        assert job.ended(within=BOUND) != 0
    line = f"error: rank 1 ({socket.gethostname()}, process {pid}) was lost: it has been stopped (SIGSTOP) for 8 s"
    assert line in log_of(job.folder, 0)
    assert saved(cached, "again") > killed
    assert losses(cached, "again")[:STEPS] == by_scripts[0]


def stop_in_save(job: Job, run: Path) -> int:
    """Stop rank 0 where it is in the middle of writing a state; its process."""

    def unfinished() -> bool:
        return any((run / "state").glob(".step_*.tmp"))

    pid = job.pid(0)
    while True:
        job.wait(unfinished)
        os.kill(pid, signal.SIGSTOP)
        if unfinished():
            return pid
        os.kill(pid, signal.SIGCONT)


def test_ranks_of_different_commands_weights_and_data_compute_nothing(place):
    shutil.copytree(place / "data", place / "other")
    (place / "other" / "0.txt").write_text("something else")
    content = (place / "small.ckpt").read_bytes()
    (place / "other.ckpt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    own = ["--learning_rate", "2e-3", "--data_path", place / "other", "--weight", place / "other.ckpt"]
    servers = Servers(place, "differ", free_port(), own)
    assert servers.codes == [1, 1]
    for log in servers.logs:
        # Its own word, or where it came too late for that, what rank 0 told it.
        line = re.search(r"^error: (?:rank 0 \(.*\) failed: )?rank 1 on (\S+) differs in (.*)", log, re.MULTILINE)
        assert line[1] == socket.gethostname()
        assert "optim.learning_rate (0.002, rank 0: 0.001), the weights (" in line[2]
        assert "the data (" in line[2]
    assert "error: rank 0 ended with code 1: rank 1 on" in servers.output
    assert not (place / "runs" / "differ").exists()


def test_without_a_free_port_the_job_ends(place):
    command = two_ranks(place, "port", "--rank_timeout", "5")
    with taken_ports(8) as first, Job(place / "port", *command, MS_SCHED_PORT=first) as job:
        assert job.ended(within=BOUND) == 1
    told = f"ports {first} to {first + 7} of 127.0.0.1 are all taken: name a free one"
    assert f"rank 0 ended with code 1: {told}" in job.output
    assert "error: rank 0 was not found at 127.0.0.1" in log_of(job.folder, 1)
