import json
import os

import numpy as np
import pytest

from gm.config.sections.data import DataConfig, DatasetConfig
from gm.data import datasets
from gm.data.order import datasets_of, epoch_batches
from gm.data.sources.headers import Headers
from gm.errors import SuiteError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def picture(root, draw_picture):
    return lambda name, **options: draw_picture(root / name, **options)


def scan(root, report=None, **options):
    return datasets.scan(DataConfig(path=str(root), **options), report)


def captions(root, **options):
    return {sample.id: sample.captions for sample in scan(root, **options)}


def test_text_files_beside_pictures_in_nested_folders(root, picture):
    for name in ("b.png", "a.png", "deep/er/a.jpg"):
        picture(name).with_suffix(".txt").write_text(f"\ufeffcaption of {name}\n\nsecond line\n", encoding="utf-8")
    found = scan(root)
    assert [sample.id for sample in found] == ["a.png", "b.png", "deep/er/a.jpg"]
    assert found[2].captions == ("caption of deep/er/a.jpg", "second line")
    assert found[0].size == (64, 64)


def test_metadata_jsonl_counts_below_its_folder(root, picture):
    for name in ("a.png", "x/b.png", "x/y/c.png"):
        picture(name)
    (root / "x" / "metadata.jsonl").write_text(
        '{"file_name": "b.png", "text": "bee"}\n\n{"file_name": "y/c.png", "text": ["sea", "see"]}\n'
    )
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "ay"}))
    assert captions(root) == {"a.png": ("ay",), "x/b.png": ("bee",), "x/y/c.png": ("sea", "see")}


def test_metadata_csv_with_commas_quotes_and_several_rows(root, picture):
    picture("a.png")
    (root / "metadata.csv").write_text('file_name,text\na.png,"one, two"\na.png,"say ""x"""\n')
    assert captions(root) == {"a.png": ("one, two", 'say "x"')}


def test_csv_of_mindone(root, picture):
    picture("x/a.jpg")
    picture("b.jpg")
    (root / "whatever.csv").write_text("dir,text\nx/a.jpg,ay\nb.jpg,bee\n")
    assert captions(root) == {"b.jpg": ("bee",), "x/a.jpg": ("ay",)}


def test_missing_captions_are_all_told_at_once(root, picture, tmp_path):
    for index in range(5):
        picture(f"{index}.png")
    (root / "0.txt").write_text("here")
    (root / "1.txt").write_text("  \n")
    with pytest.raises(SuiteError) as error:
        scan(root, report=tmp_path / "bad.csv")
    message = str(error.value)
    assert "4 of 5" in message
    assert "1.png (no caption), 2.png (no caption), 3.png (no caption) and 1 more" in message
    assert "--missing_caption" in message
    assert "\n" not in message
    assert (tmp_path / "bad.csv").read_text().splitlines() == [
        "sample,reason",
        *(f"{index}.png,no caption" for index in range(1, 5)),
    ]


def test_an_empty_csv_cell_is_a_missing_caption_and_never_the_word_nan(root, picture):
    picture("a.png")
    (root / "metadata.csv").write_text("file_name,text\na.png,\n")
    with pytest.raises(SuiteError, match="no caption"):
        scan(root)


def test_missing_captions_may_be_empty_or_the_file_name(root, picture):
    picture("x/a_red_fox.png")
    assert captions(root, missing_caption="empty") == {"x/a_red_fox.png": ("",)}
    assert captions(root, missing_caption="filename") == {"x/a_red_fox.png": ("a red fox",)}


def test_listed_pictures_that_are_not_there_are_told(root, picture):
    picture("a.png")
    (root / "metadata.csv").write_text("file_name,text\na.png,ay\ngone.png,bee\n")
    with pytest.raises(SuiteError, match=r"gone.png \(listed in metadata.csv but not there\)"):
        scan(root)


def test_broken_pictures_are_left_out_when_few_and_asked_for(root, picture):
    for index in range(3):
        picture(f"{index}.png")
    (root / "broken.png").write_bytes(b"oops")
    options = {"missing_caption": "filename"}
    with pytest.raises(SuiteError, match=r"broken.png \(not a picture"):
        scan(root, **options)
    assert len(scan(root, on_bad_sample="skip", **options)) == 3


def test_too_many_broken_pictures_are_never_skipped(root, picture):
    picture("good.png")
    for index in range(4):
        (root / f"{index}.png").write_bytes(b"oops")
    with pytest.raises(SuiteError, match="too many to skip"):
        scan(root, missing_caption="empty", on_bad_sample="skip")


@pytest.mark.parametrize(("bad", "good", "stops"), [(3, 3, False), (4, 396, False), (5, 396, True), (4, 395, True)])
def test_at_most_1_percent_and_never_fewer_than_three_are_skipped(bad, good, stops, caplog):
    data, problems = DataConfig(path="D", on_bad_sample="skip"), [datasets.Problem(str(n), "no") for n in range(bad)]
    if stops:
        with pytest.raises(SuiteError, match="too many to skip"):
            datasets.judge(data, problems, good)
    else:
        datasets.judge(data, problems, good)
        assert f"{bad} of {bad + good} samples in D cannot be used" in caplog.text


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(SuiteError, match="no pictures in"):
        scan(tmp_path)
    with pytest.raises(SuiteError, match="no folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(SuiteError, match="--data_path"):
        scan("")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"', "line 1 is not JSON"),
        ("metadata.jsonl", '{"image": "a.png", "text": "x"}', "line 1: write"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1: write"),
        ("metadata.csv", "image,caption\na.png,x\n", "has the columns image, caption"),
        ("some.csv", "", "has the columns nothing"),
    ],
)
def test_broken_lists_are_told_with_their_line(root, picture, name, text, told):
    picture("a.png")
    (root / name).write_text(text)
    with pytest.raises(SuiteError, match=told):
        scan(root)


def test_captions_that_are_not_utf8_are_told(root, picture):
    picture("a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    with pytest.raises(SuiteError, match=r"a.txt is not UTF-8"):
        scan(root)


def test_hidden_files_and_folders_are_left_alone(root, picture):
    picture("a.png")
    picture(".trash/b.png")
    picture("._a.png")
    samples, problems = datasets.inspect(DataConfig(path=str(root), missing_caption="empty"))
    assert [sample.id for sample in samples] == ["a.png"]
    assert problems == []


def mixed(*entries, **options):
    return datasets.scan(DataConfig(datasets=tuple(DatasetConfig(**entry) for entry in entries), **options))


def test_data_sets_are_mixed_with_ids_and_captions_of_their_own(root, draw_picture):
    for name in ("birds/a.png", "birds/b.png", "cats/a.png"):
        draw_picture(root / name)
    (root / "birds/a.txt").write_text("a bird")
    birds = {"path": f"{root}/birds/", "repeats": 2.5, "missing_caption": "filename"}
    found = mixed(birds, {"path": f"{root}/cats", "instance_prompt": "a sks cat", "loss_weight": 0.5})
    assert [(sample.id, *sample.captions) for sample in found] == [
        ("birds/a.png", "a bird"),
        ("birds/b.png", "b"),
        ("cats/a.png", "a sks cat"),
    ]
    assert [sample.repeats for sample in found] == [2.5, 2.5, 1]
    assert [sample.loss_weight for sample in found] == [1, 1, 0.5]
    assert [sample.dataset for sample in found] == [0, 0, 1]


def test_folders_of_one_name_and_one_folder_twice_have_ids_of_their_own(root, draw_picture):
    for name in ("x/train/a.png", "y/train/a.png"):
        draw_picture(root / name)
    entries = [{"path": f"{root}/{name}/train", "instance_prompt": "p"} for name in "xyx"]
    ids = [sample.id for sample in mixed(*entries)]
    assert ids == ["1.train/a.png", "2.train/a.png", "3.train/a.png"]


def test_weights_are_shares_of_an_epoch_that_leaves_nothing_out(root, draw_picture):
    for index in range(6):
        draw_picture(root / f"{'many' if index else 'few'}/{index}.png")
    few, many = ({"path": f"{root}/{name}", "weight": weight} for name, weight in (("few", 3.0), ("many", 1.0)))
    found = mixed(few, many, missing_caption="empty")
    assert [sample.repeats for sample in found] == [15] + [1] * 5  # 15 visits of one picture to 5 of five


def test_problems_of_all_data_sets_are_told_together(root, draw_picture):
    for name in ("x/a.png", "y/a.png"):
        draw_picture(root / name)
    with pytest.raises(SuiteError, match=r"2 of 2 samples in .*x, .*y cannot be used: x/a.png .*, y/a.png"):
        mixed({"path": f"{root}/x"}, {"path": f"{root}/y"})


def test_one_prompt_goes_before_captions(root, picture):
    picture("a.png").with_suffix(".txt").write_text("own")
    assert captions(root, instance_prompt="a photo of sks dog") == {"a.png": ("a photo of sks dog",)}


def test_pictures_that_are_too_small_are_told(root, picture):
    picture("a.png", size=(7, 100))
    with pytest.raises(SuiteError, match=r"a.png \(only 100x7 px: --minimum_image_size 8\)"):
        scan(root, instance_prompt="p")
    assert len(scan(root, instance_prompt="p", minimum_image_size=7)) == 1


def test_pixels_are_looked_at_where_asked(root, picture):
    path = picture("a.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:-200])
    assert len(scan(root, instance_prompt="p")) == 1
    with pytest.raises(SuiteError, match=r"a.png \(broken picture"):
        scan(root, instance_prompt="p", verify="pixels")


def test_the_report_goes_when_nothing_is_bad_any_more(root, picture, tmp_path):
    picture("a.png")
    with pytest.raises(SuiteError):
        scan(root, report=tmp_path / "bad.csv")
    (root / "a.txt").write_text("now")
    scan(root, report=tmp_path / "bad.csv")
    assert not (tmp_path / "bad.csv").exists()


def test_what_has_not_changed_is_not_looked_at_again(root, picture, monkeypatch):
    monkeypatch.setattr("gm.data.notes.YOUNG", -1)
    for index in range(3):
        picture(f"{index}.png")
    first = scan(root, instance_prompt="p")
    looked = []
    read = Headers.read
    monkeypatch.setattr(
        Headers, "read", lambda self, file: looked.append(os.path.basename(file.path)) or read(self, file)
    )
    assert scan(root, instance_prompt="p") == first
    assert looked == []
    picture("1.png", seed=7, size=(32, 80))
    assert scan(root, instance_prompt="p")[1].size == (32, 80)
    assert looked == ["1.png"]


@pytest.fixture
def dreambooth(root, draw_picture):
    for index in range(3):
        draw_picture(root / "dog" / f"{index}.png")
    for index in range(7):
        draw_picture(root / "class" / f"{index}.png")
    return {"path": f"{root}/dog", "instance_prompt": "a sks dog", "class_data_path": f"{root}/class"} | {
        "class_prompt": "a dog",
        "with_prior_preservation": True,
        "prior_loss_weight": 0.3,
        "num_class_images": 7,
    }


def test_instance_and_class_fill_half_of_every_batch(dreambooth):
    found = datasets.scan(DataConfig(**dreambooth))
    assert {(sample.id.split("/")[0], *sample.captions) for sample in found} == {
        ("dog", "a sks dog"),
        ("class", "a dog"),
    }
    numbers, repeats = datasets_of(found)
    counted = np.zeros(10, int)
    for epoch in range(7):
        for step in epoch_batches([(64, 64)] * 10, 2, 42, epoch, True, False, numbers, repeats):
            assert [found[position].captions for position in step.positions] == [("a sks dog",), ("a dog",)]
            counted[step.positions] += 1
    assert counted.tolist() == [7] * 3 + [3] * 7  # the class takes turns over the epochs


def test_the_loss_of_a_batch_is_that_of_diffusers(dreambooth):
    found = datasets.scan(DataConfig(**dreambooth))
    losses = np.random.default_rng(0).random(10)
    step = epoch_batches([(64, 64)] * 10, 6, 42, 0, True, False, *datasets_of(found))[0]
    mine, weights = losses[step.positions], np.array([found[position].loss_weight for position in step.positions])
    prior = step.positions >= 3
    assert prior.sum() == 3
    expected = mine[~prior].mean() + 0.3 * mine[prior].mean()  # loss + prior_loss_weight * prior_loss
    np.testing.assert_allclose((step.weights * weights * mine).mean(), expected, rtol=1e-6)


def test_class_pictures_that_are_lacking_are_counted(dreambooth, root):
    count = datasets.lacking_class_pictures
    assert count(DataConfig(**dreambooth)) == 0
    assert count(DataConfig(**dreambooth | {"num_class_images": 12})) == 5
    assert count(DataConfig(**dreambooth | {"class_data_path": f"{root}/none"})) == 7
    assert count(DataConfig(path="x")) == 0
    with pytest.raises(SuiteError, match="none has no pictures of the class yet"):
        datasets.scan(DataConfig(**dreambooth | {"class_data_path": f"{root}/none"}))
