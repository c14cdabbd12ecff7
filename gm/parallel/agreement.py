"""Before anything is computed: do all ranks have the same command, program, weights and data, and one run folder?"""

import hashlib
import os
import secrets
import time
from pathlib import Path

from gm.config import Config
from gm.config.schema import SETTINGS
from gm.errors import SuiteError, os_error_reason
from gm.parallel.peers import Alone, Peers

# May be another on each server: not the names but what they name is compared; cores and kept graphs are its own affair.
OWN = {
    *("model.weight", "model.tokenizer", "model.tokenizer_2", "data.path", "validation.eval_data_path"),
    *("train.save_path", "cache.path", "launch.threads", "launch.compile_cache"),
}
BLOCKS, BLOCK = 64, 64 * 1024  # of a large file, evenly spread
VISIBLE = 10.0  # seconds: network file systems show new files late


def check(config: Config, peers: Peers | Alone) -> None:
    """Compare all ranks with rank 0.

    Raises:
        SuiteError: on every rank; names those that differ and in what, or that do not see the folder rank 0 writes to.
    """
    if peers.size == 1:
        return
    peers.agree(facts(config))
    if config.task == "cache":
        _see_one_folder(Path(config.cache.path), "--cache_path", peers)
    elif not config.dry_run:
        _see_one_folder(Path(config.train.save_path), "--save_path", peers)


def facts(config: Config) -> dict[str, str]:
    """What must be the same for all, by name."""
    found = {}
    for path in set(SETTINGS) - OWN:
        value = config
        for name in path.split("."):
            value = getattr(value, name)
        found[path] = str(value)
    found["the program"] = _program()
    found["the weights"] = _content(config.model.weight)
    found["the data"] = _listing(config.data.path, *(dataset.path for dataset in config.data.datasets))
    found["the held-out data"] = _listing(config.validation.eval_data_path)
    for name, path in (("tokenizer", config.model.tokenizer), ("tokenizer_2", config.model.tokenizer_2)):
        found[name] = _content(path) if path and Path(path).exists() else str(path)
    return found


def _content(path: str) -> str:
    """A file's size and a hash of blocks all over it; of a folder's files, all of them. Two trainings, or two steps of
    one, differ everywhere, and weights of ten gigabytes are looked at in a moment."""
    if not path:
        return "none"
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*") if file.is_file())
    digest, total = hashlib.blake2b(digest_size=6), 0
    for file in files:
        size = file.stat().st_size
        total += size
        if file != Path(path):
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            for number in range(BLOCKS if size > BLOCKS * BLOCK else 1):
                content.seek(number * (size - BLOCK) // (BLOCKS - 1) if number else 0)
                digest.update(content.read(BLOCK if size > BLOCKS * BLOCK else size))
    return f"{total} bytes, {digest.hexdigest()}" if files else "not there"


def _listing(*paths: str) -> str:
    """How many files there are in folders, or beside the tar shards that a pattern names, and a hash of their names
    and sizes; hidden ones are left out, as in the data."""
    digest, count = hashlib.blake2b(digest_size=6), 0
    for path in filter(None, paths):
        root = Path(path) if Path(path).is_dir() else Path(path).parent
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                file = Path(folder, name)
                try:
                    size = file.stat().st_size
                except OSError:
                    size = -1
                digest.update(f"{file.relative_to(root)}\0{size}\0".encode(errors="surrogateescape"))
                count += 1
    return f"{count} files, {digest.hexdigest()}" if any(paths) else "none"


def _program() -> str:
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def _see_one_folder(folder: Path, flag: str, peers: Peers) -> None:
    """Rank 0 writes a file there, the others look for it."""
    token, fault = folder / f".seen-by-all-{secrets.token_hex(8)}", ""
    if peers.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
        except OSError as error:
            fault = "; ".join(filter(None, os_error_reason(error)))
    name, fault = peers.gather("token", [token.name, fault])[0]
    if fault:
        raise SuiteError(f"rank 0 cannot write to {flag} {folder}: {fault}")
    try:
        deadline = time.monotonic() + VISIBLE
        while not (seen := (folder / name).exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        blind = [rank for rank, sees in enumerate(peers.gather("token seen", seen)) if not sees]
    finally:
        if peers.rank == 0:
            token.unlink(missing_ok=True)
    if blind:
        who = ", ".join(f"rank {rank} on {peers.hosts[rank]}" for rank in blind[:3])
        more = f" and {len(blind) - 3} more" if len(blind) > 3 else ""
        raise SuiteError(
            f"{who}{more}: no sight of what rank 0 writes to {flag} {folder.absolute()}: give all servers one shared "
            "folder"
        )
