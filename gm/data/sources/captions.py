"""Where captions are written: metadata.jsonl, metadata.csv, MindONE's csv, text and JSON files of single pictures."""

import codecs
import csv
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gm.errors import SuiteError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


def listed_captions(root: Path, folders: list[str]) -> dict[str, tuple[list[str], str]]:
    """Captions from lists: relative picture path -> (captions, name of the list).

    ``metadata.jsonl`` and ``metadata.csv`` (Hugging Face imagefolder: ``file_name``, ``text``) count in any folder, for
    what lies below it; any other csv with columns ``dir`` and ``text`` (MindONE) counts in the top folder. A picture
    that is listed several times, or whose ``text`` is a JSON list, has several captions.
    """
    found: dict[str, tuple[list[str], str]] = {}
    lists = [(folder, name) for folder in folders for name in METADATA_NAMES if (root / folder / name).is_file()]
    lists += [("", path.name) for path in sorted(root.glob("*.csv")) if path.name not in METADATA_NAMES]
    for folder, name in lists:
        path = root / folder / name
        where = path.relative_to(root).as_posix()
        read = _jsonl_rows if name.endswith(".jsonl") else _csv_rows
        for picture, texts in read(path):
            key = posixpath.normpath(posixpath.join(folder, picture.replace("\\", "/")))
            captions = found.setdefault(key, ([], where))[0]
            captions.extend(text for text in (text.strip() for text in texts) if text and text not in captions)
    return found


def text_captions(content: bytes, name: str) -> list[str]:
    """The captions in a text file: its lines that are not empty. Raises SuiteError."""
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        raise SuiteError(f"caption file {name} is not UTF-8 text: save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def json_captions(content: bytes, name: str) -> list[str]:
    """The captions in the JSON file of a sample, as img2dataset writes it: ``caption`` or ``text``, a text or a list.

    A file without either has none. Raises SuiteError.
    """
    try:
        entry = json.loads(content)
    except ValueError:
        raise SuiteError(f"caption file {name} is not JSON: make the shard again") from None
    text = next((entry[key] for key in ("caption", "text") if entry.get(key)), []) if isinstance(entry, dict) else []
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(text, str) for text in texts):
        raise SuiteError(f'caption file {name}: write {{"caption": "what is seen"}}')
    return [text.strip() for text in texts if text.strip()]


def _jsonl_rows(path: Path) -> list[tuple[str, list[str]]]:
    rows = []
    for number, entry in _json_lines(path):
        text = entry.get("text") if isinstance(entry, dict) else None
        texts = [""] if text is None else text if isinstance(text, list) else [text]
        if not isinstance(entry, dict) or not entry.get("file_name") or not all(isinstance(t, str) for t in texts):
            raise SuiteError(f'{path} line {number}: write {{"file_name": "picture.png", "text": "caption"}}')
        rows.append((entry["file_name"], texts))
    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbers of lines, and what is in them."""
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    try:
        entries = json.loads(f"[{','.join(line for _, line in lines)}]")  # twice as fast as line by line
    except ValueError:
        entries = []
    if len(entries) == len(lines):
        yield from zip((number for number, _ in lines), entries)
        return
    for number, line in lines:
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise SuiteError(f"{path} line {number} is not JSON ({error.msg}): write one object a line") from None


def _csv_rows(path: Path) -> list[tuple[str, list[str]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True), skipinitialspace=True)
    columns = [name for name in ("file_name", "dir") if name in (reader.fieldnames or [])]
    if not columns or "text" not in reader.fieldnames:
        have = ", ".join(reader.fieldnames or []) or "nothing"
        raise SuiteError(f"{path} has the columns {have}: it needs file_name,text (or dir,text as in MindONE)")
    return [(row[columns[0]], [row["text"] or ""]) for row in reader if row[columns[0]]]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SuiteError(f"{path} is not UTF-8 text: save it as UTF-8") from None
