#!/usr/bin/env bash
# Run the fast tests with the oldest and the newest MindSpore that pyproject.toml allows, each in its own environment.
#
#   bash scripts/test_range.sh              # 2.8.0 and 2.10.0; about 3 GB of disk each
#   bash scripts/test_range.sh 2.9.0        # with these releases instead
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -gt 0 ] || set -- 2.8.0 2.10.0
failed=""
for release in "$@"; do
    venv=$root/.venv-mindspore-$release
    echo "+ fast tests with MindSpore $release"
    bash "$root/scripts/setup.sh" --extras test --venv "$venv" --mindspore "$release"
    (cd "$root" && "$venv/bin/python" -m pytest --timeout 900 -m "not slow and not reference") || failed="$failed $release"
done
if [ -n "$failed" ]; then
    echo "error: the tests fail with MindSpore$failed" >&2
    exit 1
fi
echo "the tests pass with MindSpore $*"
