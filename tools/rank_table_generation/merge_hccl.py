"""Make one rank table of those of several servers; ranks are counted on in the order the files are named.

python tools/rank_table_generation/merge_hccl.py hccl_8p_01234567_10.0.0.1.json hccl_8p_01234567_10.0.0.2.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import run_door
from gm.parallel import rank_table


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("tables", metavar="FILE", nargs="+", help="rank tables, the server of rank 0 first")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where to write hccl_<servers>s_<ranks>p.json")
    values = parser.parse(arguments)
    table = rank_table.merge([rank_table.read(path) for path in values.tables])
    path = Path(values.out) / table.default_name
    table.write(path)
    print(f"wrote {path}: {table.size} ranks on {len(table.servers)} servers")


if __name__ == "__main__":
    run_door(main)
