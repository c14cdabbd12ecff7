#!/usr/bin/env bash
# The whole job on a laptop: convert, cache, train, merge and sample a tiny SDXL, before and after (docs/quickstart.md).
#
#   bash scripts/quickstart.sh              # into runs/quickstart; run again, it goes on where it was
#   bash scripts/quickstart.sh --fresh      # from the start
#   bash scripts/quickstart.sh --out DIR    # into another folder
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" "$root/demo/tiny/quickstart.py" "$@"
