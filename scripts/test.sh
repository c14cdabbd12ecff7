#!/usr/bin/env bash
# Set up .venv, check the style and run the tests. What CI runs (.ci/run), and what a change must pass.
#
#   bash scripts/test.sh            # everything, the quickstart included: some 30 minutes on 2 cores
#   bash scripts/test.sh --fast     # without the tests marked slow or reference
#   bash scripts/test.sh [--fast] tests/diffusion -k snr    # the rest goes to pytest, which then runs in one process
#
# VENV=DIR runs in another environment than .venv.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
extras=test,reference,mpi,ui
cores=$(getconf _NPROCESSORS_ONLN)
# A file's tests share what they compile, so they stay together; a process can take 4 GB, so 4 of them are enough.
parallel=(-n $((cores < 4 ? cores : 4)) --dist loadfile)
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
fi
if [ "${1:-}" = --fast ]; then
    shift
    extras="test"
    set -- -m "not slow and not reference" "$@"
    [ $# -gt 2 ] || set -- "$@" "${parallel[@]}"
fi

run() {
    printf '+ %s\n' "$*"
    "$@"
}

cd "$root"
run bash scripts/setup.sh --extras "$extras" --venv "$venv"
run "$venv/bin/ruff" check .
run "$venv/bin/ruff" format --check .
run "$venv/bin/clang-format" --dry-run --Werror gm/kernels/source/*
if [ $# -gt 0 ]; then
    run "$venv/bin/python" -m pytest --timeout 900 "$@"
else
    run "$venv/bin/python" -m pytest --timeout 900 -m "not alone" "${parallel[@]}"
    run "$venv/bin/python" -m pytest --timeout 900 -m alone
fi
