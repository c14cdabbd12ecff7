from dataclasses import replace
from pathlib import Path

import pytest

from gm.config import load
from gm.errors import SuiteError
from gm.sampling import studio as module
from gm.sampling.studio import Studio, weights_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    arguments = ["--config", str(ROOT / "configs/inference/tiny_sdxl.yaml"), "--prompt", "x"]
    return load([*arguments, "--tokenizer", str(ROOT / "demo/tiny/tokenizer")], door="sample")


@pytest.fixture
def loaded(monkeypatch):
    """What a studio builds, in place of pipelines."""
    names = []
    monkeypatch.setattr(module, "start_device", lambda config: names.append("device"))
    monkeypatch.setattr(
        module, "build", lambda config, tokenizers: names.append(Path(config.model.weight).name) or names
    )

    def draw(pipeline, wishes, config, folder, progress, on_step):
        on_step(1, 2)

    monkeypatch.setattr(module, "draw", draw)
    return names


def weight(tmp_path, name):
    (tmp_path / name).write_bytes((ROOT / "demo/tiny/tiny_sdxl.safetensors").read_bytes())
    return str(tmp_path / name)


def test_the_two_models_used_last_stay_loaded(tmp_path, config, loaded):
    studio, paths = Studio(), [weight(tmp_path, f"{name}.safetensors") for name in "abc"]
    a, b, c = (replace(config, model=replace(config.model, weight=path)) for path in paths)
    for configs in ([a], [a, b], [b, a], [c], [a], [b]):
        studio.draw(configs, ["x"], [tmp_path] * len(configs))[0].result()
    assert loaded == ["device", "a.safetensors", "b.safetensors", "c.safetensors", "b.safetensors"]


def test_weights_that_were_written_again_are_loaded_again(tmp_path, config, loaded):
    studio, path = Studio(), weight(tmp_path, "a.safetensors")
    config = replace(config, model=replace(config.model, weight=path))
    studio.draw([config], ["x"], [tmp_path])[0].result()
    with Path(path).open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(SuiteError):  # damaged, and so not what is kept
        studio.draw([config], ["x"], [tmp_path])[0].result()


def test_progress_says_what_is_done_and_pictures_are_named(tmp_path, config, loaded):
    config = replace(config, model=replace(config.model, weight=weight(tmp_path, "a.safetensors")))
    future, progress = Studio().draw([config, config], ["a circle", "b --seed 7"], [tmp_path / "a", tmp_path / "b"])
    first, second = future.result()
    assert first == [tmp_path / "a" / "000_seed42_a-circle.png", tmp_path / "a" / "001_seed7_b.png"]
    assert second[0] == tmp_path / "b" / "000_seed42_a-circle.png"
    assert (progress.words, progress.share) == ("a.safetensors: step 1 of 2", 0.75)


def test_what_can_be_told_at_once_is(tmp_path, config, loaded):
    with pytest.raises(SuiteError, match=r"no such weight file: nothing\.ckpt"):
        Studio().draw([replace(config, model=replace(config.model, weight="nothing.ckpt"))], ["x"], [tmp_path])
    assert not loaded


def test_weights_to_choose_from_are_files_and_diffusers_folders(tmp_path):
    for name in ("b.ckpt", "a.safetensors", "note.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    found = weights_in(tmp_path, tmp_path / "nowhere", tmp_path)
    assert [Path(path).name for path in found] == ["a.safetensors", "b.ckpt", "model"]
