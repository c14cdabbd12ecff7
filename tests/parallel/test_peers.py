"""Ranks that watch over each other: plain processes, as nothing of this needs MindSpore."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gm.parallel import processes

ROOT = Path(__file__).parents[2]
MEETINGS: list[str] = []  # of the test's jobs
RANK = """
import os, signal, sys, time
from gm.errors import run_door
from gm.parallel import peers, processes

def main(arguments):
    silence, start_timeout, *what = arguments
    me = peers.connect(processes.identify(os.environ), float(start_timeout), float(silence))
    rank = me.rank
    print("met", os.getpid(), flush=True)
    exec("\\n".join(what), {**globals(), **locals()})

run_door(main)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """Some processes that run the same lines, as msrun would start them."""

    def __init__(self, *lines, size=3, ranks=None, silence=5, start_timeout=20, port=None, **variables):
        environment = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": str(size),
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": str(port or free_port()),
        }
        meeting = environment["MS_SCHED_PORT"]
        MEETINGS.append(f"127.0.0.1:{meeting}")
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(silence), str(start_timeout), *lines],
                env=environment | {"MS_NODE_ID": str(rank)} | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (range(size) if ranks is None else ranks)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def met(self) -> list[int]:
        """Wait until all have met; their process ids."""
        return [int(process.stdout.readline().split()[1]) for process in self.processes]

    def ended(self, within: float = 30) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each."""
        told = [process.communicate(timeout=within) for process in self.processes]
        return [(process.returncode, *texts) for process, texts in zip(self.processes, told)]


def guards() -> list[str]:
    """Guards of this test's processes that are still there."""
    done = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "gm.parallel import guard" in line]
    return [line for line in lines if any(f'{meeting}"' in line for meeting in MEETINGS)]


@pytest.fixture(autouse=True)
def _nothing_stays_behind():
    MEETINGS.clear()
    yield
    deadline = time.monotonic() + 15
    while guards() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not guards()


def test_values_are_gathered_by_rank_and_all_leave():
    with Job("print(me.gather('number', rank * rank), me.gather('barrier'), me.neighbours)", "me.leave()") as job:
        for code, output, errors in job.ended():
            assert (code, errors) == (0, "")
            assert output.splitlines()[1] == "[0, 1, 4] [None, None, None] [0, 1, 2]"


def test_all_end_after_the_same_step_whoever_is_asked_whenever():
    lines = (
        "for step in range(1, 1000):",
        "    if step == 20 and rank: me.request_end('SIGTERM')",
        "    if not me.may_take(step): break",
        "    time.sleep(0.002 * (rank + 1))",  # nothing keeps these ranks at the same step
        "print(step)",
        "me.leave()",
    )
    with Job(*lines) as job:
        ended = job.ended()
    assert [code for code, _, _ in ended] == [0, 0, 0]
    assert len({output.splitlines()[1] for _, output, _ in ended}) == 1
    assert 20 <= int(ended[0][1].splitlines()[1]) < 999


def test_a_rank_that_differs_is_named_by_every_rank_with_what_differs():
    facts = "{'seed': '7', 'optim.learning_rate': '0.1' if rank == 2 else '0.2', 'pictures': str(rank // 2)}"
    with Job(f"me.agree({facts})") as job:
        for code, _, errors in job.ended():
            assert code == 1
            assert "rank 2" in errors
            assert "optim.learning_rate (0.1, rank 0: 0.2), pictures (1, rank 0: 0)" in errors
            assert "seed" not in errors
            assert "rank 1 on" not in errors


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_all_and_is_named(rank, number):
    with Job("time.sleep(300)", silence=4) as job:
        pid = job.met()[rank]
        os.kill(pid, number)
        ended = job.ended(within=4 + 5 + 20)  # silence, the grace of whoever does not end by itself, a busy machine
    for other, (code, _, errors) in enumerate(ended):
        if other == rank:
            assert code == -signal.SIGKILL
        else:
            assert code == 1
            assert len(errors.splitlines()) == 1
            assert errors.startswith(f"error: rank {rank} (")
            assert f"process {pid}" in errors or rank == 0
            assert "was lost" in errors


def test_a_rank_that_hangs_in_its_program_ends_all_and_is_named():
    lines = (
        "for step in range(1, 20):",
        "    me.may_take(step)",
        "    if step == 10 and rank == 1: time.sleep(300)",
        "    me.begins(step)",
        "    me.gather('sum')",  # the step's collective
        "    me.has_done()",
    )
    with Job(*lines) as job:
        pid = job.met()[1]
        for _, _, errors in job.ended():
            assert errors.startswith(f"error: rank 1 ({socket.gethostname()}, process {pid}) hangs: no step has begun")


def test_who_is_busy_is_waited_for():
    lines = ("for step in (1, 2, 3):", "    me.begins(step)", "    me.gather('sum')", "    me.has_done()")
    lines += ("if rank == 1:", "    with me.busy(): time.sleep(7)", "me.begins(4)", "me.gather('sum')", "me.leave()")
    with Job(*lines) as job:
        assert [code for code, _, _ in job.ended()] == [0, 0, 0]


def test_a_guard_that_dies_is_noticed():
    with Job("time.sleep(60)") as job:
        pid = job.met()[1]
        (guard,) = [line.split()[0] for line in guards() if line.split()[1] == str(pid)]
        os.kill(int(guard), signal.SIGKILL)
        for rank, (code, _, errors) in enumerate(job.ended()):
            assert code == 1
            assert "rank 1" in errors or rank == 1


def test_a_failure_is_told_with_its_reason():
    lines = ("me.gather('all')", "if rank == 1: me.failed('no picture left')", "if rank == 1: sys.exit(1)")
    with Job(*lines, "time.sleep(60)") as job:
        ended = job.ended()
    assert [code for code, _, _ in ended] == [1, 1, 1]
    for rank in (0, 2):
        assert "rank 1" in ended[rank][2]
        assert "failed: no picture left; this rank stops too" in ended[rank][2]


def test_a_rank_that_hangs_while_it_gives_up_is_ended():
    with Job("me.failed('no picture left')", "time.sleep(60)") as job:
        assert [code for code, _, _ in job.ended(within=15)] == [1, 1, 1]


def test_a_rank_that_never_comes_is_named():
    with Job(ranks=[0, 2], start_timeout=6) as job:
        for code, _, errors in job.ended():
            assert code == 1
            assert "rank 1 of 3 did not come within 6 s" in errors


def test_without_rank_0_the_others_do_not_wait_for_ever():
    with Job(ranks=[1, 2], start_timeout=2) as job:
        for code, _, errors in job.ended():
            assert code == 1
            assert "rank 0 was not found at 127.0.0.1" in errors


def test_two_processes_of_one_rank_are_told():
    with Job(ranks=[0, 1, 1], start_timeout=10) as job:
        assert all(code == 1 for code, _, _ in job.ended())
        with pytest.raises(AssertionError):
            assert all("rank 1" not in errors for _, _, errors in job.ended())


def test_a_taken_port_gives_way_to_the_next():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Job("me.leave()", port=taken.getsockname()[1] - 1) as job:  # where msrun's ranks meet is one above
            assert [code for code, _, _ in job.ended()] == [0, 0, 0]


def test_two_jobs_at_the_same_port_do_not_mix():
    port = free_port()
    line = "print(me.gather('who', os.environ['WHO']))", "me.leave()"
    with Job(*line, size=2, port=port, WHO="a") as one, Job(*line, size=2, port=port + 1, WHO="b") as other:
        for job, who in ((one, "a"), (other, "b")):
            for code, output, _ in job.ended():
                assert code == 0
                assert output.splitlines()[1] == str([who, who])


def test_mpi_tells_ranks_on_several_servers_where_rank_0_is():
    pytest.importorskip("mpi4py")
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("the mpi extra's mpirun is not installed")
    program = (
        "import os, dataclasses\n"
        "from gm.parallel import peers, processes, rank_table\n"
        "first = os.environ['OMPI_COMM_WORLD_RANK'] == '0'\n"
        "rank_table.own_address = lambda: '127.0.0.1' if first else 'another'\n"
        "process = dataclasses.replace(processes.identify(os.environ), host='', one_server=False)\n"
        "me = peers.connect(process, 20, 5)\n"
        "print(me.gather('rank', me.rank))\n"
        "me.leave()\n"
    )
    done = subprocess.run(
        [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "3", sys.executable, "-c", program],
        env={name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
        | {"PYTHONPATH": str(ROOT), "MS_SCHED_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0, 1, 2]"] * 3
