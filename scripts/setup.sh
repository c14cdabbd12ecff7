#!/usr/bin/env bash
# Make .venv and install what the suite needs. Run again at any time: it goes on, repairs, or finds all done.
#
#   bash scripts/setup.sh [--extras test,reference,mpi,ui] [--venv DIR] [--mindspore VERSION]
#
# PYTHON=/path/to/python chooses the Python a new environment is made with (3.10 to 3.12).
# Where there is no C++ compiler, one from PyPI (the extra `compiler`) is installed too; CXX=COMMAND names another.
# An environment is complete when its record (scripts/installed.py) says so. While packages are being written a marker
# lies in it; an environment with a marker was interrupted, and is made anew.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv extras="" mindspore=""

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --extras | --venv | --mindspore)
            [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            case $1 in --extras) extras=$2 ;; --venv) venv=$2 ;; --mindspore) mindspore=$2 ;; esac
            shift 2 ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: unknown argument $1: setup.sh takes --extras, --venv and --mindspore" >&2; exit 2 ;;
    esac
done
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python log=$venv/setup.log marker=$venv/.installing

# Kernels for the CPU are compiled on the machine they run on (gm/kernels/library.py, which looks for the same names).
has_compiler() { [ -n "${CXX:-}" ] || command -v c++ || command -v g++ || command -v clang++; }
[ -e /dev/davinci_manager ] || has_compiler >/dev/null || extras=${extras:+$extras,}compiler

# The extras to install, on stdout; nothing and success if the environment is complete.
missing() { "$python" "$root/scripts/installed.py" check "$extras" "$mindspore" 9>&-; }

fits() { "$1" -c 'import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] < (3, 13) and sys.maxsize > 2**32))'; }

find_python() {
    local candidate path without_venv=""
    # A name on PATH may be a shim of a Python that is not there: only one that runs counts. 3.11 is the one CI uses.
    set -- python3.11 python3.12 python3.10 python3 python
    [ -z "${PYTHON:-}" ] || set -- "$PYTHON"
    for candidate in "$@"; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        fits "$path" >/dev/null 2>&1 || continue
        if "$path" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            printf '%s\n' "$path"
            return
        fi
        without_venv=$path
    done
    if [ -n "$without_venv" ]; then
        fail "$without_venv cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install" \
            "python3-venv), then run the same command again"
    fi
    fail "no 64-bit Python 3.10, 3.11 or 3.12 found${PYTHON:+ at $PYTHON}: install one (python.org, pyenv or your" \
        "system's packages) or name it with PYTHON=/path/to/python, then run the same command again"
}

check_space() { # GB
    local free_kb
    free_kb=$(df -Pk "$(dirname "$venv")" 2>/dev/null | awk 'NR == 2 { print $4 }')
    case $free_kb in '' | *[!0-9]*) return ;; esac
    if [ "$free_kb" -lt $(($1 * 1024 * 1024)) ]; then
        fail "not enough space at $(dirname "$venv"): $1 GB needed, $((free_kb / 1024)) MB free; free some and run the" \
            "same command again"
    fi
}

# One installation at a time. The lock belongs to the open file, so it ends with the last process that writes.
take_lock() { # python
    local lock='import fcntl, sys; fcntl.flock(9, fcntl.LOCK_EX | (fcntl.LOCK_NB if sys.argv[1] == "try" else 0))'
    exec 9>"$venv.lock"
    if ! "$1" -c "$lock" try 2>/dev/null; then
        say "another set-up is at work in $venv: waiting for it"
        "$1" -c "$lock" wait || fail "cannot lock $venv.lock: is the folder on a file system with locks?"
    fi
}

exec 8>&2 # for last words, whatever is being redirected when a signal comes
child=""
interrupted() {
    trap '' INT TERM HUP
    # The child leads its own process group: pip's helpers end with it.
    if [ -n "$child" ]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
        [ ! -d "$venv/tmp" ] || forget_if_untouched
        rm -rf "$venv/tmp"
    fi
    printf '\nset-up interrupted: run the same command again to go on\n' >&8
    exit 130
}
trap interrupted INT TERM HUP

# Run a command in the background, its output in the log, and show that it is alive.
watch_over() { # what command...
    local what=$1 started=$SECONDS next=0 elapsed last
    shift
    set -m
    "$@" >>"$log" 2>&1 </dev/null 8>&- 9>&- &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        elapsed=$((SECONDS - started))
        if [ "$elapsed" -gt "$next" ]; then
            last=""
            [ "$what" != installing ] ||
                last=$(grep -E '^ *(Collecting|Downloading|Using cached|Building|Installing)' "$log" | tail -n 1) || last=""
            if [ -t 1 ]; then
                printf '\r\033[Ksetup: %s, %d s  %.60s' "$what" "$elapsed" "$last"
                next=$elapsed
            else
                say "$what, $elapsed s  ${last:0:60}"
                next=$((elapsed + 20))
            fi
        fi
        { sleep 0.2; } 2>/dev/null # bash would say that a signal ended it
    done
    [ ! -t 1 ] || printf '\r\033[K'
    local code=0
    wait "$child" || code=$?
    child=""
    return "$code"
}

says() { grep -qiE "$1" "$log"; }

explain_pip() {
    if says 'no space left|errno 28|disk quota'; then
        fail "the disk is full: free some space at $venv and run the same command again (log: $log)"
    elif broken_download; then
        fail "a download arrived broken: run the same command again; if it stays so, run 'pip cache purge' first" \
            "(log: $log)"
    elif says 'failed to establish a new connection|name resolution|network is unreachable|connection refused|max retries|timed out|timeout|proxyerror|sslerror|certificate'; then
        fail "cannot reach the package index: check the network, proxy or mirror (pip config list) and run the same" \
            "command again (log: $log)"
    elif says 'no matching distribution|could not find a version'; then
        fail "$(grep -iE 'no matching distribution|could not find a version' "$log" | tail -n 1 | cut -c1-160):" \
            "no package for this system or Python; MindSpore has Linux x86_64 and aarch64 and macOS arm64 (log: $log)"
    fi
    fail "the installation failed: the reason is at the end of $log; mend it and run the same command again"
}

broken_download() {
    says 'incompleteread|connection broken|do not match the hashes|badzipfile|bad crc|not a zip file|invalid wheel|is invalid|contentdecodingerror|protocolerror|unexpected end'
}

# Whatever failed before the first package was written has changed nothing.
forget_if_untouched() { says '^installing collected packages' || rm -f "$marker"; }

install() { # extras
    local name=$root constraints=$venv/constraints.txt option done=""
    [ -z "$1" ] || name="${root}[$1]"
    cp "$root/requirements/constraints.txt" "$constraints"
    if [ -n "$mindspore" ]; then
        sed "s/^mindspore==.*/mindspore==$mindspore/" "$root/requirements/constraints.txt" >"$constraints"
    fi
    mkdir -p "$venv/tmp" # pip unpacks here: what an interruption leaves goes with the environment
    : >"$log"
    : >"$marker"
    for option in --progress-bar=off --no-cache-dir; do
        if TMPDIR=$venv/tmp watch_over "installing" "$python" -m pip install --no-input --disable-pip-version-check \
            "$option" --constraint "$constraints" --editable "$name"; then
            done=yes
            break
        fi
        broken_download || break
        [ "$option" = --no-cache-dir ] || say "a download arrived broken: fetching it again"
    done
    rm -rf "$venv/tmp"
    if [ -z "$done" ]; then
        forget_if_untouched
        explain_pip
    fi
    rm -f "$marker"
    watch_over "starting MindSpore" "$python" -c 'import gm, mindspore' ||
        fail "the installed MindSpore does not start: $(tail -n 1 "$log" | cut -c1-160) (log: $log)"
    "$python" "$root/scripts/installed.py" write "$1" "$mindspore"
    case ,$1, in
        *,compiler,*) # it compiles a C++ library first, so that a first run would seem to hang
            watch_over "compiling the kernels" "$python" -c 'from gm.kernels.library import library; library()' || true ;;
    esac
}

make_venv() { # python
    say "making $venv with $("$1" --version 2>&1) ($1)"
    rm -rf "$venv"
    mkdir -p "$venv"
    : >"$marker"
    : >"$log"
    watch_over "making the environment" "$1" -m venv "$venv" ||
        fail "$1 cannot make a virtual environment: $(tail -n 1 "$log" | cut -c1-160) (log: $log)"
}

complete() { [ ! -e "$marker" ] && fits "$python" >/dev/null 2>&1 && missing >/dev/null 2>&1; }

if complete; then exit 0; fi

if fits "$python" >/dev/null 2>&1; then base=$python; else base=$(find_python); fi
mkdir -p "$(dirname "$venv")" 2>/dev/null && [ -w "$(dirname "$venv")" ] ||
    fail "no permission to write to $(dirname "$venv"): put the suite where you may write, or name another place with --venv"
take_lock "$base"
if complete; then exit 0; fi # by the set-up that was waited for

fresh=""
if [ -e "$marker" ]; then
    say "the last installation was interrupted: starting it anew"
    fresh=yes
elif [ ! -e "$venv" ]; then
    fresh=yes
elif ! fits "$python" >/dev/null 2>&1; then
    [ -e "$venv/pyvenv.cfg" ] || fail "$venv is in the way and no virtual environment: move it, then run the same command again"
    say "the Python of $venv is gone or out of range: making it anew"
    fresh=yes
fi

gigabytes=1
[ -z "$fresh" ] || gigabytes=5 # 3 installed, and while it is being installed the archives
case $extras in *reference*) gigabytes=$((gigabytes + 1)) ;; esac # both: 4.2 installed, 5.1 at most
# The extra `compiler` has room in that: 0.4 installed, and 0.1 for its archive.
check_space "$gigabytes"

if [ -n "$fresh" ]; then
    [ "$base" != "$python" ] || base=$(find_python)
    make_venv "$base"
fi
started=$SECONDS
install "$(missing || true)"
say "done in $((SECONDS - started)) s: $venv"
