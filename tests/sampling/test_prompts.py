import pytest

from gm.errors import UsageError
from gm.sampling.prompts import make_wishes, parse_line, read_prompts
from gm.sampling.settings import Settings


def test_a_prompt_is_itself_and_a_file_its_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red circle\n\n# a comment\n  ein grünes Quadrat  \n", encoding="utf-8")
    assert read_prompts(" a red circle ") == ["a red circle"]
    assert read_prompts(str(file)) == ["a red circle", "ein grünes Quadrat"]
    assert read_prompts("a " + "very " * 2000 + "long prompt")[0].startswith("a very")


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_an_empty_prompt_file_is_refused(tmp_path, content):
    file = tmp_path / "prompts.txt"
    file.write_text(content)
    with pytest.raises(UsageError, match="is empty: write one prompt a line"):
        read_prompts(str(file))


def test_prompt_files_that_are_not_there_or_no_text_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no prompt file"):
        read_prompts(str(tmp_path / "prompts.txt"))
    file = tmp_path / "picture.png"
    file.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompts(str(file))
    with pytest.raises(UsageError, match="nothing to draw"):
        read_prompts("  ")


def test_options_of_a_line():
    line = "a red circle -- on grey --n text, blur --d 7 --w 128 --h 64 --s 12 --l 7.5"
    prompt, options = parse_line(line)
    assert prompt == "a red circle -- on grey"
    assert options == {
        "negative_prompt": "text, blur", "seed": 7, "width": 128, "height": 64, "sample_step": 12, "guidance_scale": 7.5
    }  # fmt: skip


def test_options_have_the_names_of_the_command_line_too():
    line = """a "red" circle --seed 7 --negative_prompt "blue -- or --green" --num_images=2 --guidance_scale 7"""
    prompt, options = parse_line(line + " --sampler heun --karras_sigmas --timestep_spacing trailing")
    assert prompt == 'a "red" circle'
    assert options == {
        "seed": 7,
        "negative_prompt": "blue -- or --green",
        "num_images": 2,
        "guidance_scale": 7.0,
        "sampler": "heun",
        "karras_sigmas": True,
        "timestep_spacing": "trailing",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a circle --ar 16:9", "unknown option --ar"),
        ("a circle --d seven", "--d takes a whole number of at least 0, not 'seven'"),
        ("a circle --l", "--l takes a number"),
        ("--n text", "no prompt"),
        ("a circle --d -1", "--d takes a whole number of at least 0, not '-1'"),
        ("a circle --s 0", "--s takes a whole number of at least 1, not '0'"),
        ("a circle --width 60", "--width takes a whole number of at least 8 and that is a multiple of 8, not '60'"),
        ("a circle --timestep_spacing middle", "one of leading, trailing, linspace"),
        ("a circle --weight other.ckpt", "unknown option --weight"),
    ],
)
def test_wrong_options_are_named(line, words):
    with pytest.raises(UsageError, match=words):
        parse_line(line)


def test_a_line_may_say_how_many_pictures():
    wishes = make_wishes(["a circle", "a square --num_images 3"], Settings(), 42)
    assert [wish.request.seed for wish in wishes] == [42, 42, 43, 44]


def test_pictures_of_a_prompt_count_their_seeds_up():
    settings = Settings(sample_step=5)
    wishes = make_wishes(["a circle", "a square --d 7 --s 9 --n red"], settings, 42, 2, "blur")
    assert [(wish.request.seed, wish.request.negative_prompt, wish.settings.sample_step) for wish in wishes] == [
        (42, "blur", 5),
        (43, "blur", 5),
        (7, "red", 9),
        (8, "red", 9),
    ]
