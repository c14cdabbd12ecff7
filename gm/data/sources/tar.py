"""Tar shards as webdataset and img2dataset write them: ``key.jpg`` beside ``key.txt`` or ``key.json``, read in place.

A shard is gone through once for where its members begin; that, its captions and the sizes of its pictures are kept in
the notes of the folder, and pictures are read from their place in the shard.
"""

import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.data.prefetch import for_each
from gm.data.sample import Found, PictureFile
from gm.data.sources.captions import json_captions, text_captions
from gm.data.sources.headers import PICTURE_SUFFIXES, Headers, from_json
from gm.errors import SuiteError

ORDINARY = (tarfile.REGTYPE, tarfile.XHDTYPE)  # files, and what is told of the next one beyond its header
BLANK = b" \0"
THREADS = 8  # shards read at once
CAPTION_READERS = {".txt": text_captions, ".json": json_captions}  # in this order


def read_tars(shards: Sequence[tuple[Path, str]], headers: Headers) -> list[Found]:
    """The pictures of several shards, one after the other; each has its file and what goes before their names."""
    every = for_each(lambda shard: read_tar(*shard, headers), shards, THREADS, python=True)
    return [one for found in every for one in found]


def read_tar(path: Path, name: str, headers: Headers) -> list[Found]:
    """The pictures of one shard; ``name`` goes before theirs.

    Raises:
        SuiteError: no tar, a compressed or truncated one, a caption in it that cannot be read.
    """
    place = os.path.abspath(path)
    members = headers.notes.remember(place, f"tar {headers.kind}", lambda _: _index(path, headers))
    return [
        Found(f"{name}/{member}", PictureFile(place, start, length), captions, from_json(size))
        for member, start, length, captions, size in members
    ]


def expand(pattern: str) -> list[str]:
    """``a{00..11}.tar`` as webdataset and shells read it -> ``a00.tar`` to ``a11.tar``; also ``{one,two}``."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    inner = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        parts = [f"{number:0{len(numbers[1])}}" for number in range(first, last + step, step)]
    else:
        parts = inner.split(",")
    return [whole for part in parts for whole in expand(pattern[: match.start()] + part + pattern[match.end() :])]


class Member(tarfile.TarInfo):
    """A member of a tar, of which only name, type and length are read where its header is an ordinary one: that halves
    the time it takes to go through a shard."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            name, length, told, kind = (
                buf[: buf.index(0)],
                int(buf[124:136].rstrip(BLANK), 8),
                buf[148:156],
                buf[156:157],
            )
            ordinary = kind in ORDINARY and not buf[345] and int(told.rstrip(BLANK), 8) == sum(buf) - sum(told) + 8 * 32
        except (ValueError, IndexError):  # the end of the tar among them
            ordinary = False
        if not ordinary or len(name) > 100:
            return super().frombuf(buf, encoding, errors)
        member = cls(name.decode(encoding, errors))
        member.size, member.type = length, kind
        return member


def _index(path: Path, headers: Headers) -> list[list[Any]]:
    """Name, first byte, length, captions and size of each picture in a shard, as JSON keeps them."""
    length = os.path.getsize(path)
    pictures: list[tuple[str, str, int, int]] = []
    texts: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:", tarinfo=Member) as tar:
            for member in tar:
                stem, suffix = os.path.splitext(member.name.removeprefix("./"))
                if not member.isreg() or "/." in f"/{stem}":  # hidden
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                kind = suffix.lower()
                if kind in PICTURE_SUFFIXES:
                    pictures.append((stem + suffix, stem, member.offset_data, member.size))
                elif kind in CAPTION_READERS:
                    texts[stem + kind] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.ReadError, OverflowError) as error:  # a length beyond all files is the other one
        raise SuiteError(f"shard {path} cannot be read: {_reason(path, error)}") from None
    rows = []
    with open(path, "rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)  # a block of zeros ends a tar; tarfile takes anything else for the end, too
        if not mark or any(mark):
            raise SuiteError(
                f"shard {path} cannot be read: it {'is damaged' if mark else 'is cut short'}: fetch it again"
            )
        for name, stem, start, size in sorted(pictures):
            captions: list[str] = []
            for suffix, read in CAPTION_READERS.items():
                if not captions and stem + suffix in texts:
                    at, count = texts[stem + suffix]
                    file.seek(at)
                    captions = read(file.read(count), f"{path}/{stem}{suffix}")
            rows.append([name, start, size, captions, headers.read(PictureFile(path, start, size))])
    return rows


def _reason(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        begin = file.read(6)
    if begin.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "it is compressed, and members are read from their place: unpack it to a plain .tar"
    words = str(error)
    if "end of data" in words or "truncated" in words:
        return "it is cut short: fetch it again"
    return f"no tar ({words}): fetch it again or remove it"
