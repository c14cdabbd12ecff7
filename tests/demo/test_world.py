"""The tiny world is reproducible, teaches only what it says, and arrives on disk as a user's folder would."""

import numpy as np
import pytest
from PIL import Image

from demo.tiny import world


def pixels(examples):
    return [np.asarray(example.picture).tobytes() for example in examples]


@pytest.mark.parametrize("make", [lambda seed: world.base_world(20, seed), lambda seed: world.finetune_set(seed)])
def test_a_seed_gives_the_same_pictures_and_another_seed_others(make):
    assert pixels(make(3)) == pixels(make(3))
    assert set(pixels(make(3))).isdisjoint(pixels(make(4)))


def test_the_base_world_shows_every_combination_and_nothing_new():
    examples = world.base_world(72, seed=0)
    assert len({example.caption for example in examples}) == 72
    assert {example.colour for example in examples} == set(world.BASE_COLOURS)
    assert {example.shape for example in examples} == set(world.BASE_SHAPES)
    assert not any(word in example.caption for example in examples for word in (world.NEW_COLOUR, world.NEW_SHAPE))


def test_the_finetuning_set_teaches_and_keeps_but_shows_nothing_held_out():
    shown = {(example.colour, example.shape) for example in world.finetune_set(seed=0)}
    stars = {colour for colour, shape in shown if shape == world.NEW_SHAPE}
    coloured = {shape for colour, shape in shown if colour == world.NEW_COLOUR}
    assert world.HELD_OUT_COLOURS
    assert stars == set(world.BASE_COLOURS) - set(world.HELD_OUT_COLOURS)
    assert coloured == set(world.BASE_SHAPES) - set(world.HELD_OUT_SHAPES)
    assert {(c, s) for c in world.BASE_COLOURS for s in world.BASE_SHAPES} <= shown


def test_evaluation_prompts_cover_what_is_taught_held_out_and_kept():
    taught, kept = world.evaluation_prompts()
    assert len(set(taught)) == len(taught) >= 24
    assert len(set(kept)) == len(kept) >= 18
    assert all(prompt.text.startswith(f"a {prompt.colour} {prompt.shape} on ") for prompt in taught + kept)
    stars = {prompt.colour for prompt in taught if prompt.shape == world.NEW_SHAPE}
    assert stars == set(world.COLOURS)
    assert {prompt.shape for prompt in taught if prompt.colour == world.NEW_COLOUR} == set(world.SHAPES)
    assert {(p.colour, p.shape) for p in kept} == {(c, s) for c in world.BASE_COLOURS for s in world.BASE_SHAPES}


def test_colours_stay_apart_from_each_other_and_from_every_ground():
    colours = np.array(list(world.COLOURS.values()), float)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)[~np.eye(len(colours), dtype=bool)]
    from_ground = np.linalg.norm(colours[:, None] - np.array(list(world.GROUNDS.values()), float), axis=-1)
    assert apart.min() > 120
    assert from_ground.min() > 80


@pytest.mark.parametrize("shape", world.SHAPES)
def test_a_shape_lies_wholly_inside_the_picture_at_the_promised_size(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture = world.draw(shape, "red", "black", rng)
        mask = np.abs(np.asarray(picture, float) - world.GROUNDS["black"]).sum(-1) > 60
        width = np.flatnonzero(mask.any(0))
        assert picture.size == (world.SIZE, world.SIZE)
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
        assert 0.35 * world.SIZE < width[-1] - width[0] + 1 <= 0.78 * world.SIZE


def test_edges_are_smooth():
    picture = np.asarray(world.draw("circle", "white", "black", np.random.default_rng(0)), int)
    assert len(np.unique(picture[..., 0])) > 10


def test_a_folder_holds_pictures_with_their_captions(tmp_path):
    examples = world.finetune_set(seed=1)[:5]
    world.write_folder(tmp_path, examples)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        f"{index:04d}.{ending}" for index in range(5) for ending in ("png", "txt")
    )
    for index, example in enumerate(examples):
        with Image.open(tmp_path / f"{index:04d}.png") as picture:
            assert picture.tobytes() == example.picture.tobytes()
        assert (tmp_path / f"{index:04d}.txt").read_text() == example.caption + "\n"


def test_free_pictures_differ_and_reach_beyond_the_named_colours():
    rng = np.random.default_rng(0)
    pictures = [np.asarray(world.free_picture(rng)).reshape(-1, 3) for _ in range(200)]
    assert len({picture.tobytes() for picture in pictures}) == 200
    strong = np.concatenate([picture[picture.max(1) - picture.min(1) > 120] for picture in pictures]).astype(float)
    named = np.array(list(world.COLOURS.values()), float)
    nearest = np.linalg.norm(strong[::50, None] - named, axis=-1)
    assert set(nearest.argmin(1)) == {index for index, name in enumerate(world.COLOURS) if name != "white"}
    assert (nearest.min(1) > 60).mean() > 0.2
