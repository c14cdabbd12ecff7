import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.errors import UsageError
from gm.parallel.peers import Alone
from gm.sampling import class_images
from gm.sampling.pipeline import Drawn


class Painter:
    """A pipeline whose pictures say which seed they are of; ends with an error after ``most`` pictures."""

    def __init__(self, most=1000):
        self.most, self.asked = most, []

    def sample(self, requests, settings, batch_size):
        assert {request.prompt for request in requests} == {"a dog"}
        assert (settings.height, settings.width) == (64, 64)
        for index, request in enumerate(requests):
            if index == self.most:
                raise KeyboardInterrupt
            self.asked.append(request.seed)
            yield Drawn(Image.new("RGB", (64, 64), (request.seed, 0, 0)), np.zeros((4, 8, 8)))


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.data.with_prior_preservation, config.data.num_class_images = True, 5
    config.data.class_data_path, config.data.class_prompt = str(tmp_path / "class"), "a dog"
    config.data.resolution, config.train.seed, config.sample.batch_size = 64, 40, 2
    config.model.weight, config.model.tokenizer = "model.ckpt", "demo/tiny/tokenizer"
    return config


@pytest.fixture
def draw(config, monkeypatch):
    def run(most=1000, peers=None):
        painter = Painter(most)
        monkeypatch.setattr(class_images, "build", lambda *_: painter)
        class_images.draw_lacking(config, peers or Alone())
        return painter.asked

    return run


class Told:
    """What a rank says to the others, and hears from rank 0."""

    def __init__(self, rank, heard=()):
        self.rank, self.heard, self.said = rank, list(heard), []

    def gather(self, name, value=None):
        self.said.append(value)
        return [self.heard.pop(0) if self.heard else value]


def colours(folder):
    return {path.name: Image.open(path).getpixel((0, 0))[0] for path in sorted(folder.glob("*.png"))}


def test_each_picture_has_a_number_and_the_seed_of_it(draw, tmp_path):
    assert draw() == [40, 41, 42, 43, 44]
    assert colours(tmp_path / "class") == {f"class_{number:05}.png": 40 + number for number in range(5)}
    assert draw() == []


def test_interrupted_it_goes_on_to_the_same_pictures(draw, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw(most=2)
    assert draw() == [42, 43, 44]
    assert colours(tmp_path / "class") == {f"class_{number:05}.png": 40 + number for number in range(5)}


def test_rank_0_draws_and_says_so_of_every_picture(draw, config):
    first, other = Told(0), Told(1, heard=[True] * 5 + [False])
    assert draw(peers=first) == [40, 41, 42, 43, 44]
    assert first.said == [True] * 5 + [False]
    assert draw(peers=other) == []
    assert (len(other.said), other.heard) == (6, [])


def test_pictures_that_are_there_count(draw, tmp_path, config):
    (tmp_path / "class").mkdir()
    for name in ("a.jpg", "b.png", "class_00001.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "class" / name)
    assert draw() == [40, 42]
    config.data.num_class_images = 3
    assert draw() == []


def test_without_weights_nothing_can_draw(draw, config):
    config.model.weight = ""
    with pytest.raises(UsageError, match="lacks 5 of 5 pictures of the class, and without --weight"):
        draw()
