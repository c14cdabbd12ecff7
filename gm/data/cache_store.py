"""Arrays by key in safetensors shards: written whole or not at all, read memory-mapped, checked against damage."""

import hashlib
import json
import os
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gm.errors import SuiteError
from gm.files import replacing, write_text

SUFFIX = ".safetensors"
INDEX = "index.json"

Entry = Mapping[str, np.ndarray]


class ShardStore:
    """One folder of shards, which never change once they are there.

    An entry is a few named arrays under a key (hex); names, shapes and types are the same throughout a shard. So all
    entries of a shard are rows of a few tensors, in the order of their keys, and its header is read in a fraction of a
    millisecond.

    A shard's file name follows from the keys in it, so two processes that do the same work write the same file. Its
    metadata holds the keys, the CRC-32 of every row and the ``refused`` keys: those that were tried and cannot be had,
    with the reason. ``index.json`` spares reading every shard's header; it is checked against the folder and mended
    from it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: list[Path] = []
        self.refused: dict[str, str] = {}
        self._shard_of: dict[str, str] = {}
        self._handles: dict[str, tuple] = {}
        self._verified: set[str] = set()
        self._shards = self._load()
        for name, shard in self._shards.items():
            self._add(name, shard)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def __len__(self) -> int:
        return len(self._shard_of)

    def keys(self) -> Iterator[str]:
        return iter(self._shard_of)

    def read(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of an entry, as stored. Raises SuiteError if its shard is damaged, KeyError without the entry."""
        name = self._shard_of[key]
        row = bisect_left(self._shards[name]["keys"], key)
        try:
            handle, checksums = self._handles.get(name) or self._open(name)
            entry = {part: handle.get_slice(part)[row] for part in checksums}
        except (SafetensorError, OSError, LookupError, ValueError, TypeError):
            raise damaged(self.folder / name) from None
        if key not in self._verified:
            if any(zlib.crc32(value) != checksums[part][row] for part, value in entry.items()):
                raise damaged(self.folder / name)
            self._verified.add(key)
        return entry

    def write(self, label: str, entries: Mapping[str, Entry], refused: Mapping[str, str] | None = None) -> None:
        """Add a shard with these entries and refused keys."""
        keys, refused = sorted(entries), dict(sorted((refused or {}).items()))
        name = shard_name(label, [*keys, *refused])
        parts = sorted(entries[keys[0]]) if keys else []
        tensors = {part: np.stack([entries[key][part] for key in keys]) for part in parts}
        checksums = {part: [zlib.crc32(row) for row in rows] for part, rows in tensors.items()}
        # One metadata item: the library writes several in no fixed order, and shards must not differ by that.
        about = _dump({"keys": keys, "crc32": checksums, "refused": refused})
        with replacing(self.folder / name) as file:
            file.write(save(tensors, metadata={"cache": about}))
        shard = {"bytes": (self.folder / name).stat().st_size, "keys": keys, "refused": refused}
        self._shards[name] = shard
        self._add(name, shard)

    def save_index(self) -> None:
        """Write the index if it does not say what is there."""
        if not self._shards:
            return
        shards = {name: self._shards[name] for name in sorted(self._shards)}
        text = _dump({"crc32": _checksum(shards), "shards": shards}) + "\n"
        path = self.folder / INDEX
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def remove_damaged(self) -> list[Path]:
        """Delete shards that cannot be read, so that they are made again; returns them."""
        removed = []
        for path in self.damaged:
            if path.is_file() and self._described(path.name) is None:  # another process may have made it again
                path.unlink(missing_ok=True)
                removed.append(path)
        self.damaged = []
        return removed

    def remove_leftovers(self, name: str) -> None:
        """Delete what processes that were killed while they wrote the shard ``name`` have left of it."""
        for path in self.folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)

    def _load(self) -> dict[str, dict]:
        if not self.folder.is_dir():
            return {}
        there = {item.name: item.stat().st_size for item in os.scandir(self.folder) if item.name.endswith(SUFFIX)}
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            whole = index["crc32"] == _checksum(index["shards"])
            known = {name: shard for name, shard in index["shards"].items() if shard["bytes"] == there.get(name)}
            known = known if whole else {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            known = {}
        shards = {}
        for name in sorted(name for name in there if not name.startswith(".")):
            if shard := known.get(name) or self._described(name):
                shards[name] = shard
            else:
                self.damaged.append(self.folder / name)
        return shards

    def _described(self, name: str) -> dict | None:
        """What the shard's own header says; None if it is damaged."""
        path = self.folder / name
        try:
            with safe_open(str(path), framework="numpy") as handle:
                about = json.loads(handle.metadata()["cache"])
            return {"bytes": path.stat().st_size, "keys": about["keys"], "refused": about["refused"]}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def _add(self, name: str, shard: dict) -> None:
        for key in shard["keys"]:
            self._shard_of.setdefault(key, name)
        self.refused.update(shard["refused"])

    def _open(self, name: str) -> tuple:
        handle = safe_open(str(self.folder / name), framework="numpy")
        about = json.loads(handle.metadata()["cache"])
        if about["keys"] != self._shards[name]["keys"]:
            raise ValueError("the index is of another shard")
        self._handles[name] = handle, about["crc32"]
        return self._handles[name]


def shard_name(label: str, keys: Sequence[str]) -> str:
    """The file name of the shard with these keys; ``label`` says to people what is in it."""
    digest = hashlib.blake2b("".join(sorted(keys)).encode(), digest_size=8).hexdigest()
    return f"{label}-{digest}{SUFFIX}"


def damaged(path: Path) -> SuiteError:
    return SuiteError(f"cache shard {path} is damaged: remove it and run --task cache again, which makes only it anew")


def _dump(value: dict) -> str:
    return json.dumps(value, separators=(",", ":"))


def _checksum(shards: dict) -> int:
    return zlib.crc32(_dump(shards).encode())
