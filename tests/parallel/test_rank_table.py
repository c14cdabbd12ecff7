"""Rank tables: written as HCCL reads them, merged, and checked down to the last value."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gm.errors import SuiteError, UsageError
from gm.parallel import rank_table

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools" / "rank_table_generation"
# The example of the HCCL documentation, for two cards.
DOCUMENTED = {
    "version": "1.0",
    "server_count": "1",
    "server_list": [
        {
            "server_id": "10.0.0.1",
            "device": [
                {"device_id": "0", "device_ip": "192.1.0.6", "rank_id": "0"},
                {"device_id": "1", "device_ip": "192.2.0.6", "rank_id": "1"},
            ],
            "host_nic_ip": "reserve",
        }
    ],
    "status": "completed",
}


def tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(TOOLS / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def one_server(folder: Path, server: str, first: int, count: int) -> Path:
    addresses = ",".join(f"192.168.{first}.{index}" for index in range(count))
    done = tool(
        "hccl_tools.py", "--device_num", f"[0,{count})", "--server_ip", server, "--device_ips", addresses,
        "--out", str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / f"hccl_{count}p_{''.join(map(str, range(count)))}_{server}.json"


def test_the_tool_writes_the_documented_form(tmp_path):
    done = tool(
        "hccl_tools.py", "--device_num", "[0,2)", "--server_ip", "10.0.0.1", "--device_ips", "192.1.0.6,192.2.0.6",
        "--out", str(tmp_path),
    )  # fmt: skip
    path = tmp_path / "hccl_2p_01_10.0.0.1.json"
    assert done.stdout == f"wrote {path}: 2 ranks\n"
    assert json.loads(path.read_text()) == DOCUMENTED


def test_tables_of_servers_merge_into_one_with_ranks_over_all(tmp_path):
    paths = [one_server(tmp_path, f"10.0.0.{number}", number, 4) for number in (1, 2)]
    done = tool("merge_hccl.py", *map(str, paths), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    table = rank_table.read(tmp_path / "hccl_2s_8p.json")
    assert [device.rank_id for server in table.servers for device in server.devices] == list(range(8))
    server, device = table.place(5)
    assert (server.server_id, device.device_id, device.device_ip) == ("10.0.0.2", 1, "192.168.2.1")
    with pytest.raises(UsageError, match="no rank 8"):
        table.place(8)


def test_a_server_cannot_be_merged_twice(tmp_path):
    path = str(one_server(tmp_path, "10.0.0.1", 1, 2))
    done = tool("merge_hccl.py", path, path, "--out", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "server_id 10.0.0.1 occurs twice" in done.stderr


def test_visible_devices_number_the_cards(tmp_path):
    done = tool(
        "hccl_tools.py", "--device_num", "[1,3)", "--visible_devices", "4,5,6,7", "--server_ip", "10.0.0.1",
        "--device_ips", "192.1.0.5,192.1.0.6", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (server,) = rank_table.read(tmp_path / "hccl_2p_56_10.0.0.1.json").servers
    assert [(device.device_id, device.rank_id) for device in server.devices] == [(5, 0), (6, 1)]


def test_addresses_come_from_the_driver(tmp_path):
    fake = tmp_path / "hccn_tool"
    fake.write_text('#!/bin/sh\necho "ipaddr:192.9.0.$2"\necho "netmask:255.255.255.0"\n')
    fake.chmod(0o755)
    done = tool(
        "hccl_tools.py", "--device_num", "[0,2)", "--server_ip", "10.0.0.1", "--out", str(tmp_path),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (server,) = rank_table.read(tmp_path / "hccl_2p_01_10.0.0.1.json").servers
    assert [device.device_ip for device in server.devices] == ["192.9.0.0", "192.9.0.1"]


def test_addresses_come_from_the_drivers_configuration(tmp_path):
    conf = tmp_path / "hccn.conf"
    conf.write_text(
        "address_0=192.98.92.100\nnetmask_0=255.255.255.0\naddress_1=192.98.93.100\ngateway_1=192.98.93.1\n"
    )
    assert rank_table.device_addresses([0, 1], conf) == {0: "192.98.92.100", 1: "192.98.93.100"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device_num", "0-8"], '"[0,8)"'),
        (["--device_num", "[3,3)"], '"[0,8)"'),
        (["--device_num", "[0,2)", "--device_ips", "192.1.0.6"], "1 addresses for 2 cards"),
        (["--device_num", "[0,2)", "--device_ips", "192.1.0.6,192.1.0.6"], "device_ip 192.1.0.6 occurs twice"),
        (["--device_num", "[0,1)", "--device_ips", "here"], "'here' is no IP address"),
        (["--device_num", "[0,4)", "--visible_devices", "0,1"], "needs 4 cards"),
        (["--device_nums", "[0,4)"], "did you mean --device_num"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_in_one_line_and_nothing_is_written(tmp_path, arguments, told):
    done = tool("hccl_tools.py", "--server_ip", "10.0.0.1", *arguments, "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not list(tmp_path.iterdir())


def damaged(change) -> dict:
    table = copy.deepcopy(DOCUMENTED)
    change(table, table["server_list"][0], table["server_list"][0]["device"])
    return table


FAULTS = {
    "version": (lambda table, server, devices: table.update(version="1.2"), "version is '1.2'"),
    "status": (lambda table, server, devices: table.update(status="initializing"), "not 'completed'"),
    "server_count": (lambda table, server, devices: table.update(server_count="2"), "server_count is 2"),
    "no servers": (lambda table, server, devices: table.update(server_list=[], server_count="0"), "no device"),
    "no devices": (lambda table, server, devices: server.update(device=[]), "no device"),
    "missing field": (lambda table, server, devices: devices[0].pop("device_ip"), "has no device_ip"),
    "a number": (lambda table, server, devices: devices[1].update(rank_id=1), "a text in quotes"),
    "no number": (lambda table, server, devices: devices[1].update(device_id="one"), "not a number"),
    "gap": (lambda table, server, devices: devices[1].update(rank_id="3"), "rank_id 1 is missing"),
    "rank twice": (lambda table, server, devices: devices[1].update(rank_id="0"), "rank_id 0 occurs twice"),
    "card twice": (lambda table, server, devices: devices[1].update(device_id="0"), "device_id 0 occurs twice"),
    "address twice": (lambda table, server, devices: devices[1].update(device_ip="192.1.0.6"), "occurs twice"),
    "no address": (lambda table, server, devices: devices[1].update(device_ip="card1"), "'card1' is no IP address"),
    "a list": (lambda table, server, devices: table.update(server_list={}), "is no list"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_table_is_told_in_one_line(tmp_path, name):
    change, told = FAULTS[name]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(SuiteError, match=r"hccl_tools\.py") as failure:
        rank_table.read(path)
    assert told in str(failure.value)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", ["", "[1, 2", "[]", "null"])
def test_a_file_that_is_no_table_is_told(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(SuiteError, match=r"table\.json"):
        rank_table.read(path)
    with pytest.raises(SuiteError, match="no rank table at"):
        rank_table.read(tmp_path / "none.json")
