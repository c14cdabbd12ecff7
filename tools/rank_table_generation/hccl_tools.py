"""Write the rank table of one server: which card is which rank, for HCCL and for the scripts that start a rank a card.

On an Ascend server, for its eight cards (addresses come from hccn_tool or /etc/hccn.conf):

    python tools/rank_table_generation/hccl_tools.py --device_num "[0,8)"

Anywhere, with the addresses given:

    python tools/rank_table_generation/hccl_tools.py --device_num "[0,2)" --server_ip 127.0.0.1 \\
        --device_ips 192.168.100.100,192.168.100.101

Several servers: run it on each, then merge_hccl.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import UsageError, run_door
from gm.parallel import rank_table


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--device_num", metavar="RANGE", default="[0,8)", help='cards to use (default "[0,8)": 0 to 7)')
    parser.add_argument("--visible_devices", metavar="LIST", help="numbers of the cards the range counts (0,1,2,...)")
    parser.add_argument("--server_ip", metavar="IP", help="address of this server (default: found)")
    parser.add_argument("--device_ips", metavar="LIST", help="addresses of the cards in use (default: the driver's)")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where to write hccl_<n>p_<cards>_<server>.json")
    values = parser.parse(arguments)
    cards = rank_table.choose(values.device_num, values.visible_devices)
    if values.device_ips is None:
        addresses = rank_table.device_addresses(cards)
    else:
        given = values.device_ips.split(",")
        if len(given) != len(cards):
            raise UsageError(f"--device_ips has {len(given)} addresses for {len(cards)} cards")
        addresses = dict(zip(cards, given))
    table = rank_table.make(values.server_ip or rank_table.own_address(), cards, addresses)
    path = Path(values.out) / table.default_name
    table.write(path)
    print(f"wrote {path}: {table.size} ranks")


if __name__ == "__main__":
    run_door(main)
