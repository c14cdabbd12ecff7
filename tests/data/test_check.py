import pytest
from PIL import Image

from gm.config.sections.data import DatasetConfig
from gm.data.check import check


@pytest.fixture
def checked(config, tmp_path, capsys):
    """Run the check; gives exit code, what was printed and the report."""
    config.train.save_path = str(tmp_path / "runs")
    config.model.tokenizer = "demo/tiny/tokenizer"

    def run():
        code = check(config)
        return code, capsys.readouterr(), (tmp_path / "runs/check/report.txt").read_text()

    return run


def test_a_good_folder_is_described(checked, config, pictures, draw_picture, tmp_path):
    config.data.buckets, config.data.resolution = True, 64
    draw_picture(pictures / "9.png", seed=9, size=(64, 256))
    (pictures / "2.txt").write_text("red " * 80)
    code, printed, report = checked()
    assert code == 0
    assert printed.err == ""
    for line in (
        "10 usable pictures",
        "problems: 0",
        "width: 64 to 256 px, median 64",
        "trained at, height x width (2 to compile):",
        "steps per epoch: 4 of 4 pictures, 6 places filled up",
        "cut off by cropping: 0.0% of a picture on average",
        "captions: 11, 10 different, 0 empty",
        "captions over 77 tokens: 1, 5 tokens are not seen in all",
    ):
        assert line in printed.out
    assert "2.png: 5 tokens beyond the end" in report
    with Image.open(tmp_path / "runs/check/aspects.png") as plot:
        assert plot.width > 400


def test_problems_are_counted_and_all_in_the_report(checked, pictures, tmp_path):
    for index in range(12):
        (pictures / f"broken{index:02}.png").write_bytes(b"oops")
    code, printed, report = checked()
    assert code == 1
    assert "problems: 12" in printed.out
    assert "and 2 more" in printed.out
    assert report.count("not a picture") == 12
    assert "training would refuse this: 12 of 22 samples" in printed.err

    rows = (tmp_path / "runs/check/bad_samples.csv").read_text().splitlines()
    assert len(rows) == 13
    assert rows[1] == "broken00.png,not a picture Pillow can read"


def test_what_would_be_left_out_is_counted_size_by_size(checked, config, pictures, draw_picture):
    config.data.buckets, config.data.resolution, config.data.drop_last = True, 64, True
    config.data.minimum_image_size = 40
    draw_picture(pictures / "9.png", seed=9, size=(64, 256))
    draw_picture(pictures / "8.png", seed=9, size=(16, 16))
    (pictures / "7.txt").unlink()
    _, printed, _ = checked()
    for line in (
        "problems: 2",
        "       1 no caption",
        "       1 only 16x16 px",
        "steps per epoch: 1 of 4 pictures, 4 pictures left out of it (--drop_last)",
        "  32x128: 1 of 1",
        "  64x64: 3 of 7",
    ):
        assert line in printed.out


def test_data_sets_are_listed(checked, config, pictures, draw_picture):
    draw_picture(pictures.parent / "more/a.png")
    entries = [DatasetConfig(str(pictures)), DatasetConfig(str(pictures.parent / "more"), 2.5, None, 0.5, "p")]
    config.data.path, config.data.datasets = "", tuple(entries)
    _, printed, _ = checked()
    assert "11 usable pictures\ndata sets: 2\n  pictures: 10 pictures, 1 times an epoch\n" in printed.out
    assert "  more: 1 pictures, 2.5 times an epoch, loss counts 0.5 times\n" in printed.out


def test_class_pictures_that_will_be_drawn_are_told(checked, config, tmp_path, draw_picture):
    config.data.with_prior_preservation, config.data.num_class_images = True, 5
    config.data.class_data_path, config.data.class_prompt = str(tmp_path / "class"), "a dog"
    code, printed, _ = checked()
    assert code == 0
    assert "pictures of the class: the model draws 5 of 5 first" in printed.out
    for index in range(2):
        draw_picture(tmp_path / f"class/{index}.png")
    out = checked()[1].out
    assert "the model draws 3 of 5 first" in out
    assert "class: 2 pictures, 5 times an epoch, loss counts 2 times" in out


def test_captions_are_measured_against_the_longest_text_that_is_seen(checked, config, pictures):
    (pictures / "2.txt").write_text("red " * 160)
    config.model.max_token_length = 150
    assert "captions over 154 tokens: 1, 10 tokens are not seen in all" in checked()[1].out


def test_the_exit_code_is_what_training_would_do(checked, config, pictures):
    (pictures / "broken.png").write_bytes(b"oops")
    assert checked()[0] == 1
    config.data.on_bad_sample = "skip"
    assert checked()[0] == 0


def test_small_pictures_are_named(checked, config):
    config.data.resolution = 128
    assert "enlarged more than 1.25 times: 10" in checked()[1].out


def test_without_a_tokenizer_the_rest_is_told(checked, config):
    config.model.tokenizer = "nowhere/at/all"
    code, printed, _ = checked()
    assert code == 0
    assert "captions were not measured: no tokenizer folder" in printed.out


def test_only_broken_pictures_are_a_report_too(checked, pictures):
    for path in pictures.glob("*.png"):
        path.write_bytes(b"oops")
    assert checked()[0] == 1
