"""A folder of pictures, nested as one likes, with captions beside them or in lists; tar shards in it are read, too."""

import os
from io import FileIO
from pathlib import Path

from gm.data.prefetch import for_each
from gm.data.sample import Found, PictureFile, Problem
from gm.data.sources.captions import listed_captions, text_captions
from gm.data.sources.headers import PICTURE_SUFFIXES, Headers
from gm.data.sources.tar import read_tars
from gm.errors import SuiteError

TAR_SUFFIX = ".tar"
THREADS = 8


def read_folder(root: Path, headers: Headers) -> tuple[list[Found], list[Problem]]:
    """Every picture below ``root``, sorted by name, and the listed ones that are not there.

    Hidden files and folders are left out. A member ``key.jpg`` of ``shard.tar`` is named ``shard.tar/key.jpg``.

    Raises:
        SuiteError: a list of captions, a caption file or a tar cannot be read.
    """
    top = os.path.abspath(root)
    pictures, texts, tars, folders = _walk(top)
    listed = listed_captions(root, folders)
    lists = {name: where for name, (_, where) in listed.items()}
    gone = [Problem(name, f"listed in {lists[name]} but not there") for name in lists.keys() - set(pictures)]

    def find(name: str) -> Found:
        picture = PictureFile(f"{top}/{name}")
        if name in listed:
            captions = listed[name][0]
        else:
            stem = name[: name.rindex(".")]
            captions = _beside(f"{top}/{stem}.txt") if stem in texts else []
        return Found(name, picture, captions, headers.of(picture))

    found = for_each(find, pictures, THREADS)
    found += read_tars([(root / name, name) for name in tars], headers)
    return sorted(found, key=lambda one: one.name), gone


def _walk(root: str) -> tuple[list[str], set[str], list[str], list[str]]:
    """Names below ``root`` of pictures (sorted), of text files without suffix, of tars, of folders (top first)."""
    pictures, texts, tars, folders = [], set(), [], []
    for current, below, files in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        folder = os.path.relpath(current, root).replace(os.sep, "/")
        folders.append(folder)
        above = "" if folder == "." else f"{folder}/"
        for name in files:
            stem, dot, suffix = name.rpartition(".")
            suffix = dot + suffix.lower()
            if name[0] == "." or not dot:
                continue
            if suffix in PICTURE_SUFFIXES:
                pictures.append(above + name)
            elif suffix == ".txt":
                texts.add(above + stem)
            elif suffix == TAR_SUFFIX:
                tars.append(above + name)
    return sorted(pictures), texts, sorted(tars), folders


def _beside(path: str) -> list[str]:
    try:
        with FileIO(path) as file:
            return text_captions(file.readall(), path)
    except OSError as error:
        raise SuiteError(f"caption file {path} cannot be read ({error.strerror})") from None
