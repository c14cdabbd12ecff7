"""The exported single files of SD 1.x, SD 2.x and the refiner: diffusers opens them with every weight in its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gm.weights.convert import ckpt_to_safetensors
from gm.weights.files import open_weights
from gm.weights.folder import ckpt_to_diffusers, diffusers_to_ckpt

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.reference

TOKENIZER = Path(__file__).resolve().parents[2] / "demo/tiny/tokenizer"
PIPELINES = {
    "sd-1": "StableDiffusionPipeline",
    "sd-2": "StableDiffusionPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


@pytest.fixture(scope="module", params=PIPELINES)
def exported(request, families, write_random_model, tmp_path_factory):
    """The pipeline's class, and a model of random weights as .ckpt, single file and diffusers folder."""
    architecture = families[request.param]
    if request.param == "sd-2":  # diffusers knows the layer that it leaves out by its number in the released model
        architecture = replace(architecture, text_encoders=(replace(architecture.text_encoders[0], layers=24),))
    root = tmp_path_factory.mktemp(request.param)
    write_random_model(root / "model.ckpt", architecture)
    with open_weights(root / "model.ckpt") as weights:
        assert weights.architecture() == architecture
    ckpt_to_safetensors(root / "model.ckpt", root / "model.safetensors")
    ckpt_to_diffusers(root / "model.ckpt", root / "folder", tokenizer=TOKENIZER)
    return getattr(diffusers, PIPELINES[request.param]), root


def weights_of(pipeline) -> dict:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_the_single_file_and_the_folder_are_one_pipeline(exported):
    kind, root = exported
    folder = kind.from_pretrained(root / "folder", local_files_only=True)
    single = kind.from_single_file(str(root / "model.safetensors"), config=str(root / "folder"), local_files_only=True)
    ours, theirs = weights_of(folder), weights_of(single)
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        assert value.device.type != "meta"
        assert torch.equal(theirs[name], value), name
    assert single.scheduler.config == folder.scheduler.config
    # nothing was left at random: the folder's weights are the file's own
    names = [name for name in ours if name.startswith("unet.") or name.startswith("vae.")]
    with open_weights(root / "model.ckpt") as file:
        mine = [name for name in file.names() if name.startswith(("model.", "first_stage_model."))]
        assert len(mine) == len(names)
        total = sum(file.read(name).sum(dtype=np.float64) for name in mine)
    assert total == pytest.approx(sum(float(ours[name].sum(dtype=torch.float64)) for name in names), rel=1e-9)


def test_folder_to_ckpt_to_folder_is_the_same_folder(exported, tmp_path):
    _, root = exported
    diffusers_to_ckpt(root / "folder", tmp_path / "again.ckpt")
    ckpt_to_diffusers(tmp_path / "again.ckpt", tmp_path / "again", tokenizer=root / "folder")
    files = {path.relative_to(root / "folder") for path in (root / "folder").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (root / "folder" / file).read_bytes(), file
