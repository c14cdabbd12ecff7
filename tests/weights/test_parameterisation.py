import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.errors import SuiteError
from gm.weights.parameterisation import Declared, check_parameterisation, declared


def write_run(folder, **diffusion):
    """A training run's record, and the place of its weights."""
    (folder / "weights").mkdir(parents=True)
    lines = ["diffusion:", *(f"  {name}: {value}" for name, value in diffusion.items())]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    weight = folder / "weights" / "unet_10.ckpt"
    weight.write_bytes(b"")
    return weight


def write_folder(folder, **scheduler):
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_weights_of_a_run_are_what_its_record_says(tmp_path):
    weight = write_run(tmp_path / "run", prediction_type="v_prediction", rescale_betas_zero_snr="true")
    assert declared(weight)[:2] == ("v_prediction", True)


def test_a_diffusers_folder_counts_where_it_is_out_of_the_ordinary(tmp_path):
    plain = write_folder(tmp_path / "plain", prediction_type="epsilon")
    assert declared(plain)[:2] == (None, None)  # exporters write the default when they do not know
    special = write_folder(tmp_path / "special", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert declared(special)[:2] == ("v_prediction", True)


@pytest.mark.parametrize(("said", "kind"), [("v", "v_prediction"), ("epsilon", "epsilon"), ("flow", None)])
def test_metadata_of_a_safetensors_file_counts(tmp_path, said, kind):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(2, np.float32)}, path, {"modelspec.prediction_type": said})
    assert declared(path).prediction_type == kind


def test_what_says_nothing_or_cannot_be_read_declares_nothing(tmp_path):
    (tmp_path / "a" / "weights").mkdir(parents=True)
    weight = tmp_path / "a" / "weights" / "model.ckpt"
    weight.write_bytes(b"x")
    assert declared(weight) == Declared()
    (tmp_path / "a" / "config.yaml").write_text("diffusion: [")
    assert declared(weight) == Declared()
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 20)
    assert declared(tmp_path / "b.safetensors") == Declared()
    assert declared(tmp_path) == Declared()


def test_a_contradiction_names_the_flag_that_mends_it(tmp_path):
    weight = write_run(tmp_path / "run", prediction_type="v_prediction", rescale_betas_zero_snr="true")
    check_parameterisation(weight, "v_prediction", True)
    with pytest.raises(SuiteError, match=r"says .*config\.yaml.*give --stage2_prediction_type v_prediction"):
        check_parameterisation(weight, "epsilon", True, "stage2_")
    with pytest.raises(SuiteError, match="give --rescale_betas_zero_snr True"):
        check_parameterisation(weight, "v_prediction", False)
