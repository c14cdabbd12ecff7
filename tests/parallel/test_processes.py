"""Who a process is, by what each launcher writes into its environment."""

import pytest

from gm.errors import SuiteError, UsageError
from gm.parallel import rank_table
from gm.parallel.processes import Process, identify

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_LOCAL_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "16",
    "PMIX_NAMESPACE": "prterun-a-7@1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MSRUN = {
    "MS_ROLE": "MS_WORKER",
    "MS_NODE_ID": "3",
    "MS_WORKER_NUM": "4",
    "MS_SCHED_HOST": "127.0.0.1",
    "MS_SCHED_PORT": "9000",
    "DEVICE_ID": "3",
    "RANK_ID": "3",
    "RANK_SIZE": "4",
}


@pytest.fixture
def tables(tmp_path):
    """The paths of rank tables: cards 4 to 7 of one server, and two servers with two cards each."""

    def server(number, cards):
        addresses = {card: f"192.168.{number}.{card}" for card in cards}
        return rank_table.make(f"10.0.0.{number}", cards, addresses)

    one, two = tmp_path / "hccl_4p.json", tmp_path / "hccl_2s_4p.json"
    server(1, [4, 5, 6, 7]).write(one)
    rank_table.merge([server(1, [0, 1]), server(2, [0, 1])]).write(two)
    return one, two


def test_alone():
    assert identify({}) == Process()
    assert identify({"DEVICE_ID": "5"}) == Process(device_id=5)
    assert identify({"RANK_SIZE": "1", "RANK_TABLE_FILE": "kept from another job"}) == Process()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OPEN_MPI, Process("mpirun", 5, 16, 5, job="mpirun prterun-a-7@1")),
        (HYDRA, Process("mpirun", 1, 2, 1, job="mpirun ")),
        (OPEN_MPI | {"MS_SCHED_PORT": "9000"}, Process("mpirun", 5, 16, 5, port=9000, job="mpirun prterun-a-7@1")),
        (MSRUN, Process("msrun", 3, 4, 3, port=9001, job="msrun 127.0.0.1:9000")),
        # msrun started by somebody's mpirun, and with a rank table for HCCL: its own variables count, as in MindSpore
        (OPEN_MPI | MSRUN | {"RANK_TABLE_FILE": "x"}, Process("msrun", 3, 4, 3, port=9001, job="msrun 127.0.0.1:9000")),
    ],
)
def test_on_one_server(environment, expected):
    assert identify(environment) == expected


def test_on_several_servers():
    second = OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "13", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}
    process = identify(second)
    assert (process.rank, process.device_id, process.host, process.one_server) == (13, 5, "", False)
    assert identify(second | {"MS_SCHED_HOST": "10.0.0.1"}).host == "10.0.0.1"
    process = identify(MSRUN | {"MS_SCHED_HOST": "10.0.0.1"})
    assert (process.host, process.one_server) == ("10.0.0.1", False)


def test_the_scheduler_of_msrun_is_no_rank():
    process = identify(MSRUN | {"MS_ROLE": "MS_SCHED"})
    assert process.scheduler
    assert not identify(MSRUN).scheduler


def test_a_rank_table_says_card_and_meeting_point(tables):
    one, two = map(str, tables)
    process = identify({"RANK_TABLE_FILE": one, "RANK_ID": "2", "RANK_SIZE": "4", "DEVICE_ID": "6"})
    assert (process.launcher, process.rank, process.size, process.device_id) == ("rank table", 2, 4, 6)
    assert (process.host, process.one_server) == ("127.0.0.1", True)
    process = identify({"RANK_TABLE_FILE": two, "RANK_ID": "3"})
    assert (process.rank, process.size, process.device_id) == (3, 4, 1)
    assert (process.host, process.one_server) == ("10.0.0.1", False)


def test_jobs_with_different_rank_tables_are_different_jobs(tables):
    jobs = {identify({"RANK_TABLE_FILE": str(path), "RANK_ID": "0"}).job for path in tables}
    assert len(jobs) == 2


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"RANK_SIZE": "8"}, "RANK_SIZE is 8, but RANK_TABLE_FILE and RANK_ID"),
        ({"RANK_SIZE": "eight"}, "RANK_SIZE is 'eight', not a number"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "16"}, "mpirun started 16 processes, but calls this one rank 16"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK is ''"),
        ({name: value for name, value in MSRUN.items() if name != "MS_NODE_ID"}, "--node_rank"),
    ],
)
def test_what_cannot_be_is_one_line(environment, line):
    with pytest.raises(UsageError, match=line):
        identify(environment)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"RANK_ID": "4"}, "there is no rank 4"),
        ({"RANK_ID": "0", "RANK_SIZE": "8"}, "RANK_SIZE is 8, but .* has 4 devices"),
        ({"RANK_ID": "0", "DEVICE_ID": "0"}, "DEVICE_ID is 0, but in .* rank 0 is device 4"),
    ],
)
def test_an_environment_that_contradicts_its_rank_table_is_one_line(tables, wrong, line):
    with pytest.raises(UsageError, match=line):
        identify({"RANK_TABLE_FILE": str(tables[0]), **wrong})


def test_a_rank_table_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(SuiteError, match=r"no rank table at .*hccl_tools\.py"):
        identify({"RANK_TABLE_FILE": str(tmp_path / "hccl_8p.json"), "RANK_ID": "0"})
