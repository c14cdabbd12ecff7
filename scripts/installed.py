"""Is the virtual environment that runs this complete? Its record says what was installed, and for what.

    .venv/bin/python scripts/installed.py check EXTRAS MINDSPORE   # 0 complete; 1 not, and prints the extras to install
    .venv/bin/python scripts/installed.py write EXTRAS MINDSPORE

EXTRAS is a list with commas, MINDSPORE a release other than the default one; both may be empty. Standard library only:
it runs before anything is installed.
"""

import hashlib
import json
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(sys.prefix) / "installed.json"


def fingerprint(mindspore: str) -> str:
    """What an installation depends on: requirements, pins, the Python, and the folder, which the installation names."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n{mindspore}\n".encode())
    for name in ("pyproject.toml", "requirements/constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def distributions() -> set[str]:
    return {folder.name for folder in Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info")}


def main(action: str, extras: str, mindspore: str) -> int:
    wanted = {extra for extra in extras.split(",") if extra}
    if action == "write":
        record = {
            "fingerprint": fingerprint(mindspore),
            "extras": sorted(wanted),
            "distributions": sorted(distributions()),
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return 0
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        had, complete = set(record["extras"]), record["fingerprint"] == fingerprint(mindspore)
        complete = complete and had >= wanted and distributions() >= set(record["distributions"])
    except (OSError, ValueError, KeyError):
        had, complete = set(), False
    if not complete:
        print(",".join(sorted(wanted | had)))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
