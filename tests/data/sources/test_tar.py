import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gm.config.sections.data import DataConfig
from gm.data import cache, datasets, transforms
from gm.data.batches import Batches
from gm.data.notes import FileNotes
from gm.data.sources.tar import Member, expand
from gm.errors import SuiteError


def drawn(seed: int, size: tuple[int, int] = (24, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def encoded(seed: int, **options) -> bytes:
    stream = io.BytesIO()
    drawn(seed).save(stream, "PNG", **options)
    return stream.getvalue()


def pack(path: Path, members: dict[str, bytes], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members_of(content: bytes, kind: type[tarfile.TarInfo]) -> list[tuple] | str:
    """Name, type, length and place of each member, or what is wrong."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:", tarinfo=kind) as tar:
            return [(one.name, one.type, one.size, one.offset_data) for one in tar]
    except (tarfile.ReadError, OverflowError, ValueError) as error:
        return str(error)


def odd_names(kind: int) -> bytes:
    """A tar with names, folders and times of all sorts."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name in ("a.png", "b" * 100, "c" * 101, "d" * 90 + "/" + "e" * 90, "f" * 300, "é ü.png", "./g.txt", "h/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "h/" else tarfile.REGTYPE
            info.size, info.mtime = (0, 1) if name == "h/" else (len(name), 1.5 if kind == tarfile.PAX_FORMAT else 1)
            try:
                tar.addfile(info, io.BytesIO(b"x" * info.size))
            except ValueError:  # a name that the format has no room for
                continue
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    return stream.getvalue()


ODD = [odd_names(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


read = st.one_of(st.integers(*ends) for ends in ((0, 99), (124, 135), (148, 156), (345, 350)))  # of a header


@given(
    st.integers(0, 2), st.lists(st.tuples(read, st.sampled_from(b"\0 01578+-_x\x80\xff")), max_size=4), st.booleans()
)
def test_members_are_those_that_tarfile_finds(kind, changes, mended):
    content = bytearray(ODD[kind])
    for place, value in changes:
        content[place] = value
    if mended:  # a strange header with the right sum
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    content = bytes(content)
    assert members_of(content, Member) == members_of(content, tarfile.TarInfo)


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples each, with captions in text and JSON files."""
    for shard in range(3):
        members = {}
        for index in (2 * shard, 2 * shard + 1):
            members |= {f"{index:04}.png": encoded(index), f"{index:04}.cls": b"3"}
            caption = f"caption {index}"
            if index % 2:
                members[f"{index:04}.txt"] = caption.encode()
            else:
                members[f"{index:04}.json"] = json.dumps({"caption": caption, "width": 40}).encode()
        pack(tmp_path / "shards" / f"{shard:03}.tar", members)
    return tmp_path / "shards"


def scan(path, **options):
    return datasets.scan(DataConfig(path=str(path), **options))


def test_samples_are_read_where_they_lie(shards):
    found = scan(shards / "{000..002}.tar")
    assert [sample.id for sample in found] == [f"{n // 2:03}.tar/{n:04}.png" for n in range(6)]
    assert [sample.captions for sample in found] == [(f"caption {n}",) for n in range(6)]
    assert {sample.size for sample in found} == {(24, 40)}
    for number, sample in enumerate(found):
        np.testing.assert_array_equal(np.asarray(transforms.load(sample.picture)), np.asarray(drawn(number)))
        assert sample.picture.read() == encoded(number)
    assert sorted(path.name for path in shards.iterdir() if path.name[0] != ".") == ["000.tar", "001.tar", "002.tar"]


def test_a_folder_of_shards_and_pictures_is_one_data_set(shards, draw_picture):
    draw_picture(shards / "own.png").with_suffix(".txt").write_text("own")
    assert len(scan(shards)) == 7
    assert [sample.id for sample in scan(shards / "001.tar")] == ["001.tar/0002.png", "001.tar/0003.png"]


def test_any_number_of_threads_reads_at_once(shards):
    found = scan(shards) * 20
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(lambda sample: np.asarray(transforms.load(sample.picture)), found))
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(picture, np.asarray(drawn(number % 6)))


def test_a_member_is_a_stream_like_any_other(shards):
    sample = scan(shards)[2]
    whole = encoded(2)
    with sample.picture.open() as stream:
        assert stream.read(7) == whole[:7]
        assert stream.seek(-9, os.SEEK_END) == len(whole) - 9
        assert stream.read() == whole[-9:]
        assert stream.read() == b""
        stream.seek(3)
        stream.seek(2, os.SEEK_CUR)
        assert stream.read(2) == whole[5:7]


def test_a_hash_is_of_the_member_alone(shards, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(3))
    notes = FileNotes(tmp_path / "notes.json")
    [whole] = scan(tmp_path, instance_prompt="p")[:1]
    hashes = [sample.picture.hash(notes) for sample in scan(shards)]
    assert hashes[3] == whole.picture.hash(notes)
    assert len(set(hashes)) == 6


def test_a_shard_has_the_cache_of_the_files_that_are_in_it(config, encoders, tokenizers, pictures, tmp_path):
    cache.build(config, encoders, tokenizers, progress=False)
    with Batches(config, datasets.scan(config.data), None, encoders, tokenizers) as batches:
        of_files = [next(batches) for _ in range(3)]
    members = {path.name: path.read_bytes() for path in pictures.iterdir() if path.name[0] != "."}
    config.data.path = str(pack(tmp_path / "one.tar", members))
    made = encoders.pictures, encoders.texts
    cache.build(config, encoders, tokenizers, progress=False)
    assert (encoders.pictures, encoders.texts) == made
    with Batches(config, [], cache.open(config, None, encoders, tokenizers), encoders, tokenizers) as batches:
        of_shard = [next(batches) for _ in range(3)]
    for one, other in zip(of_files, of_shard):  # the order follows from places, which are the same
        np.testing.assert_array_equal(one["moments"], other["moments"])


def test_an_unchanged_shard_is_not_gone_through_again(shards, monkeypatch):
    monkeypatch.setattr("gm.data.notes.YOUNG", -1)
    first = scan(shards)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
        assert scan(shards) == first
    pack(shards / "001.tar", {"new.png": encoded(9), "new.txt": b"new"})
    assert [sample.id for sample in scan(shards)][2] == "001.tar/new.png"


def test_formats_folders_long_names_and_what_is_hidden(tmp_path):
    deep = "a" * 120 + "/" + "b" * 130
    members = {f"./{deep}.png": encoded(1), f"./{deep}.txt": b"deep", "._x.png": b"mac", ".trash/y.png": b""}
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        pack(tmp_path / f"{number}.tar", members, format=kind)
    assert [(sample.id, *sample.captions) for sample in scan(tmp_path)] == [
        ("0.tar/" + deep + ".png", "deep"),
        ("1.tar/" + deep + ".png", "deep"),
    ]


def test_several_captions_and_missing_ones(tmp_path):
    texts = {
        "a.json": b'{"text": ["one", "two"]}',
        "b.txt": b"\xef\xbb\xbfthree\n\nfour\n",
        "c.json": b'{"width": 3}',
        "d_e.json": b'{"caption": null, "text": "five"}',
    }
    members = {f"{os.path.splitext(name)[0]}.png": encoded(1) for name in texts}
    pack(tmp_path / "a.tar", members | texts)
    with pytest.raises(SuiteError, match=r"1 of 4 samples .* a.tar/c.png \(no caption\)"):
        scan(tmp_path)
    found = [sample.captions for sample in scan(tmp_path, missing_caption="filename")]
    assert found == [("one", "two"), ("three", "four"), ("c",), ("five",)]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda whole: whole[:700], "it is cut short: fetch it again"),
        (lambda whole: whole[:300], "it is cut short|no tar"),
        (lambda whole: b"\x1f\x8b" + whole, "it is compressed"),
        (lambda whole: b"x" * 2000, "no tar"),
        (lambda whole: whole[:1024] + b"x" * 4096, "it is damaged: fetch it again"),
        (lambda whole: whole[:1024], "it is cut short: fetch it again"),
    ],
)
def test_broken_shards_are_named(tmp_path, damage, told):
    path = pack(tmp_path / "a.tar", {"a.txt": b"x" * 100, "a.png": encoded(1)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SuiteError, match=rf"shard .*a.tar cannot be read: ({told})") as error:
        scan(tmp_path)
    assert "\n" not in str(error.value)


def test_broken_pictures_in_a_shard_are_told_by_name(tmp_path):
    pack(tmp_path / "a.tar", {"a.png": b"oops", "a.txt": b"a", "b.png": encoded(1), "b.txt": b"b"})
    with pytest.raises(SuiteError, match=r"a.tar/a.png \(not a picture"):
        scan(tmp_path)
    assert len(scan(tmp_path, on_bad_sample="skip")) == 1


@pytest.mark.parametrize(("name", "content"), [("a.json", b"{"), ("a.txt", b"\xe9"), ("a.json", b'{"text": 3}')])
def test_broken_captions_in_a_shard_are_told_by_name(tmp_path, name, content):
    pack(tmp_path / "a.tar", {"a.png": encoded(1), name: content})
    with pytest.raises(SuiteError, match=rf"caption file .*a.tar/{name}"):
        scan(tmp_path)


def test_shards_that_are_not_there_are_told(shards):
    with pytest.raises(SuiteError, match=r"no shard .*003.tar: 2 of 5"):
        scan(shards / "{000..004}.tar")


def test_braces_are_those_of_webdataset():
    assert expand("a.tar") == ["a.tar"]
    assert expand("s/{008..011}.tar") == ["s/008.tar", "s/009.tar", "s/010.tar", "s/011.tar"]
    assert expand("{a,b}/{1..2}.tar") == ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]
    assert expand("{2..0}") == ["2", "1", "0"]
