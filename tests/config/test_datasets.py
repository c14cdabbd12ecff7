"""Settings that are lists: the data sets to mix."""

import pytest

from gm.config import load
from gm.errors import UsageError


@pytest.fixture
def yaml(tmp_path):
    """Write a YAML file and give its path."""

    def write(text: str, name: str = "config.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def message(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


DATASETS = """
data:
  datasets:
    - {path: birds, repeats: 2.5}
    - path: "shards/{000..012}.tar"
      loss_weight: 0.5
      missing_caption: filename
"""


def test_a_list_of_data_sets_from_a_file_or_the_command_line(yaml):
    config = load(["--config", yaml(DATASETS)])
    birds, shards = config.data.datasets
    assert (birds.path, birds.repeats, birds.weight, birds.missing_caption) == ("birds", 2.5, None, None)
    assert (shards.path, shards.loss_weight, shards.missing_caption) == ("shards/{000..012}.tar", 0.5, "filename")
    line = "[{path: birds, repeats: 2.5}, {path: 'shards/{000..012}.tar', loss_weight: .5, missing_caption: filename}]"
    assert load(["--datasets", line]).data.datasets == config.data.datasets
    assert load(["--config", yaml(config.to_yaml(), "again.yaml")]) == config
    assert load(["--config", yaml(DATASETS), "--datasets", "none", "--data_path", "D"]).data.datasets == ()


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("[{pth: a}]", "unknown key pth in entry 1 of --datasets: did you mean path?"),
        ("[{path: a}, {path: b, repeats: 0}]", "repeats of entry 2 of --datasets takes a number above 0, not 0"),
        ("[a]", "--datasets takes a list of {path, "),
        ("{", "--datasets takes a list of {path, "),
        ("[{repeats: 2}]", "entry 1 of data.datasets has no path"),
        ("[{path: a, repeats: 2, weight: 1}]", "entry 1 of data.datasets has both repeats and a weight"),
        ("[{path: a, weight: 1}, {path: b}]", "gives weights to some of its entries only"),
    ],
)
def test_wrong_lists_of_data_sets_are_told(entries, told):
    assert told in message("--datasets", entries)


def test_one_data_set_and_several_at_once_are_told():
    assert "--data_path is of a single data set" in message("--data_path", "D", "--datasets", "[{path: a}]")
    assert "--instance_prompt is of a" in message("--instance_prompt", "p", "--datasets", "[{path: a}]")


PRIOR = ("--data_path", "D", "--with_prior_preservation", "--class_data_dir", "C", "--class_prompt", "a dog")


def test_prior_preservation_in_diffusers_words():
    data = load([*PRIOR, "--instance_prompt", "a sks dog", "--num_class_images", "20"]).data
    assert (data.class_data_path, data.class_prompt, data.num_class_images) == ("C", "a dog", 20)
    assert load(["--instance_data_dir", "D"]).data.path == "D"


def test_prior_preservation_that_lacks_something_is_told():
    assert "needs --class_prompt" in message(*PRIOR[:-2])
    assert "needs --class_data_path" in message(*PRIOR[:3], *PRIOR[5:])
    assert "--class_prompt a dog does nothing without --with_prior" in message(*PRIOR[:2], *PRIOR[5:])
    assert "is of a single data set" in message(*PRIOR[2:], "--datasets", "[{path: a}]")
