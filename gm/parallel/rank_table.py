"""Rank tables: which device of which server is which rank, as HCCL reads it (schema version 1.0, JSON).

    {"version": "1.0", "server_count": "1", "status": "completed", "server_list": [
        {"server_id": "10.0.0.1", "host_nic_ip": "reserve", "device": [
            {"device_id": "0", "device_ip": "192.1.0.6", "rank_id": "0"}, ...]}]}

All values are strings. ``server_id`` is the server's address, ``device_id`` the number of a card in it, ``device_ip``
the address of the card's own network port, ``rank_id`` counts over all servers from 0.
"""

import hashlib
import ipaddress
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.errors import SuiteError, UsageError
from gm.files import write_json

VERSION = "1.0"
HCCN_CONF = Path("/etc/hccn.conf")


@dataclass(frozen=True)
class Device:
    """A card: its number in its server, the address of its network port, its rank among all."""

    device_id: int
    device_ip: str
    rank_id: int


@dataclass(frozen=True)
class Server:
    """A server and its cards, in the order of their ranks."""

    server_id: str
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class RankTable:
    """Servers in the order of their ranks."""

    servers: tuple[Server, ...]

    @property
    def size(self) -> int:
        return sum(len(server.devices) for server in self.servers)

    @property
    def default_name(self) -> str:
        """The file name the tools of this field give it."""
        if len(self.servers) == 1:
            (server,) = self.servers
            numbers = "".join(str(device.device_id) for device in server.devices)
            return f"hccl_{self.size}p_{numbers}_{server.server_id}.json"
        return f"hccl_{len(self.servers)}s_{self.size}p.json"

    @property
    def digest(self) -> str:
        """The same for the same table, and for no other."""
        return hashlib.blake2b(repr(self.servers).encode(), digest_size=8).hexdigest()

    def place(self, rank: int) -> tuple[Server, Device]:
        """Server and card of a rank.

        Raises:
            UsageError: there is no such rank.
        """
        for server in self.servers:
            for device in server.devices:
                if device.rank_id == rank:
                    return server, device
        raise UsageError(f"the rank table has ranks 0 to {self.size - 1}: there is no rank {rank}")

    def write(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        servers = [
            {
                "server_id": server.server_id,
                "device": [
                    {
                        "device_id": str(device.device_id),
                        "device_ip": device.device_ip,
                        "rank_id": str(device.rank_id),
                    }
                    for device in server.devices
                ],
                "host_nic_ip": "reserve",
            }
            for server in self.servers
        ]
        table = {"version": VERSION, "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
        write_json(path, table)


def make(server_id: str, device_ids: Sequence[int], device_ips: dict[int, str]) -> RankTable:
    """The table of one server: ranks from 0 in the order of ``device_ids``; ``device_ips`` maps card to address.

    Raises:
        UsageError: a card without an address, or numbers and addresses that make no table.
    """
    missing = [device_id for device_id in device_ids if device_id not in device_ips]
    if missing:
        raise UsageError(f"card {missing[0]} has no address: it is not among {sorted(device_ips)}")
    devices = tuple(Device(device_id, device_ips[device_id], rank) for rank, device_id in enumerate(device_ids))
    table = RankTable((Server(server_id, devices),))
    fault = _fault(table)
    if fault:
        raise UsageError(fault)
    return table


def merge(tables: Iterable[RankTable]) -> RankTable:
    """One table of several: servers in the order given, ranks counted anew.

    Raises:
        UsageError: a server or an address occurs twice.
    """
    servers, rank = [], 0
    for server in (server for table in tables for server in table.servers):
        devices = tuple(
            Device(device.device_id, device.device_ip, rank + index) for index, device in enumerate(server.devices)
        )
        servers.append(Server(server.server_id, devices))
        rank += len(devices)
    table = RankTable(tuple(servers))
    fault = _fault(table)
    if fault:
        raise UsageError(f"the tables do not go together: {fault}")
    return table


def read(path: str | Path) -> RankTable:
    """Read and check a table.

    Raises:
        SuiteError: no such file, no JSON, or no table; one line that names the place and the remedy.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SuiteError(f"no rank table at {path}: make one with tools/rank_table_generation/hccl_tools.py") from None
    except (OSError, ValueError) as error:
        raise SuiteError(f"{path} is no rank table: {error}") from None
    try:
        table = _parse(found)
        fault = _fault(table)
        if fault:
            raise ValueError(fault)
    except ValueError as error:
        raise SuiteError(f"{path}: {error}; mend it or make it anew with hccl_tools.py") from None
    return table


def _parse(found: object) -> RankTable:
    version = _text(found, "version", "the table")
    if version != VERSION:
        raise ValueError(f"version is {version!r}, and this suite knows {VERSION!r}")
    status = _text(found, "status", "the table")
    if status != "completed":
        raise ValueError(f"status is {status!r}, not 'completed': it was not finished")
    servers = []
    for number, entry in enumerate(_list(found, "server_list", "the table")):
        where = f"server {number}"
        devices = [
            Device(
                _number(device, "device_id", f"device {index} of {where}"),
                _text(device, "device_ip", f"device {index} of {where}"),
                _number(device, "rank_id", f"device {index} of {where}"),
            )
            for index, device in enumerate(_list(entry, "device", where))
        ]
        servers.append(Server(_text(entry, "server_id", where), tuple(devices)))
    count = _number(found, "server_count", "the table")
    if count != len(servers):
        raise ValueError(f"server_count is {count}, and server_list has {len(servers)}")
    return RankTable(tuple(servers))


def _fault(table: RankTable) -> str:
    """What is wrong with a table's numbers and addresses, or nothing."""
    names = [server.server_id for server in table.servers]
    if not names or not all(server.devices for server in table.servers):
        return "it has no device" if not names else "a server has no device"
    devices = [device for server in table.servers for device in server.devices]
    for what, values in (
        ("server_id", names),
        ("device_ip", [device.device_ip for device in devices]),
        ("rank_id", [device.rank_id for device in devices]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            return f"{what} {twice[0]} occurs twice"
    for server in table.servers:
        numbers = [device.device_id for device in server.devices]
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        if twice:
            return f"device_id {twice[0]} occurs twice in server {server.server_id}"
    gaps = sorted(set(range(len(devices))) - {device.rank_id for device in devices})
    if gaps:
        return f"rank_id {gaps[0]} is missing among {len(devices)} devices"
    for address in (*names, *(device.device_ip for device in devices)):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            return f"{address!r} is no IP address"
    return ""


def _field(found: object, name: str, where: str) -> object:
    if not isinstance(found, dict) or name not in found:
        raise ValueError(f"{where} has no {name}")
    return found[name]


def _list(found: object, name: str, where: str) -> list:
    value = _field(found, name, where)
    if not isinstance(value, list):
        raise ValueError(f"{name} of {where} is no list")
    return value


def _text(found: object, name: str, where: str) -> str:
    value = _field(found, name, where)
    if not isinstance(value, str):
        raise ValueError(f"{name} of {where} is {value!r}: every value of a rank table is a text in quotes")
    return value


def _number(found: object, name: str, where: str) -> int:
    value = _text(found, name, where)
    if not re.fullmatch(r"\d+", value):
        raise ValueError(f"{name} of {where} is {value!r}, not a number from 0 on")
    return int(value)


def parse_range(text: str) -> list[int]:
    """``"[0,8)"`` -> 0 to 7: first card, and the one after the last.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"\s*\[\s*(\d+)\s*,\s*(\d+)\s*\)\s*", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f'--device_num takes a range such as "[0,8)", the cards 0 to 7, not {text!r}')
    return list(range(int(match[1]), int(match[2])))


def choose(device_num: str, visible_devices: str | None) -> list[int]:
    """The cards a range means: themselves, or those at these places of ``visible_devices`` ("4,5,6,7").

    Raises:
        UsageError: no range, no list of numbers, or a range beyond the list.
    """
    places = parse_range(device_num)
    if visible_devices is None:
        return places
    if not re.fullmatch(r"\d+(,\d+)*", visible_devices):
        raise UsageError(f'--visible_devices takes numbers such as "0,1,2,3", not {visible_devices!r}')
    cards = [int(number) for number in visible_devices.split(",")]
    if places[-1] >= len(cards):
        raise UsageError(
            f"--device_num {device_num} needs {places[-1] + 1} cards, --visible_devices names {len(cards)}"
        )
    return [cards[place] for place in places]


def own_address() -> str:
    """The address this server has in its network.

    Raises:
        UsageError: it has none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: nothing is sent, a route is all it takes
            return probe.getsockname()[0]
        except OSError:
            raise UsageError("this server's address cannot be found: name it with --server_ip") from None


def device_addresses(device_ids: Sequence[int], conf: Path = HCCN_CONF) -> dict[int, str]:
    """Addresses of cards from ``hccn_tool``, else from ``/etc/hccn.conf``.

    Raises:
        UsageError: neither is there, or they do not tell.
    """
    tool = shutil.which("hccn_tool") or shutil.which("/usr/local/Ascend/driver/tools/hccn_tool")
    if tool:
        return {device_id: _ask(tool, device_id) for device_id in device_ids}
    if conf.is_file():
        return parse_hccn_conf(conf.read_text(encoding="utf-8"))
    raise UsageError(
        f"no Ascend driver here (neither hccn_tool nor {conf}): give the cards' addresses with --device_ips, in the "
        "order of the cards"
    )


def _ask(tool: str, device_id: int) -> str:
    done = subprocess.run([tool, "-i", str(device_id), "-ip", "-g"], capture_output=True, text=True, check=False)
    match = re.search(r"ipaddr:\s*(\S+)", done.stdout)
    if done.returncode or not match:
        raise UsageError(
            f"hccn_tool does not tell the address of card {device_id} ({(done.stderr or done.stdout).strip()[:100]}): "
            "configure the card's network, or give --device_ips"
        )
    return match[1]


def parse_hccn_conf(text: str) -> dict[int, str]:
    """Lines ``address_<card>=<address>`` of the driver's network configuration."""
    return {int(number): address for number, address in re.findall(r"^address_(\d+)=(\S+)\s*$", text, re.MULTILINE)}
