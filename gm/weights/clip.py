"""CLIP models as the hub has them: a folder with ``config.json`` and ``model.safetensors``, names of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gm.errors import SuiteError
from gm.models.architecture import HEAD_WIDTH, CLIPArchitecture, TextEncoderArchitecture, VisionEncoderArchitecture
from gm.weights.files import WeightFile, open_weights
from gm.weights.folder import open_model_folder, read_json

ACTIVATIONS = ("quick_gelu", "gelu")
TEXT_HEADS, VISION_HEADS = 8, 12  # what transformers takes where config.json says nothing


def open_clip_model(path: str | Path) -> tuple[CLIPArchitecture, WeightFile]:
    """A CLIP with both towers: a folder of the hub, or the ``.safetensors`` in one; its ``config.json`` lies beside it.

    Raises:
        SuiteError: missing or damaged files, or another model; the message says which.
    """
    path = Path(path)
    weights = open_model_folder(path) if path.is_dir() else open_weights(path)
    try:
        config = (path if path.is_dir() else path.parent) / "config.json"
        if not config.exists():
            raise SuiteError(f"{config} is missing, which tells the heads and activations of {path}: download it too")
        return detect_clip(weights.shapes(), read_json(config)), weights
    except SuiteError as error:
        weights.close()
        raise error if str(path) in str(error) else SuiteError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        weights.close()
        raise SuiteError(f"{path}: shapes or config.json are of no CLIP: download both again") from None


def detect_clip(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> CLIPArchitecture:
    """The architecture of keys and shapes; what these cannot tell, heads and activations, is from ``config.json``.

    Raises:
        SuiteError: not a CLIP with both towers, or one whose layers are of a kind that is not known here.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise SuiteError(f"this is no CLIP with a text and a picture tower, it has no {name}: give one that has")
        return shapes[name]

    def layers(tower: str) -> int:
        prefix = f"{tower}.encoder.layers."
        return 1 + max(
            (int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)), default=-1
        )

    def told(tower: str, heads: int) -> tuple[str, int]:
        """Activation and heads; old files repeat what differs from the defaults under ``<tower>_config_dict``."""
        said = {**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}
        activation = said.get("hidden_act", ACTIVATIONS[0])
        if activation not in ACTIVATIONS:
            raise SuiteError(
                f"the {tower} tower has the activation {activation}: known are {' and '.join(ACTIVATIONS)}"
            )
        return activation, said.get("num_attention_heads", heads)

    vocabulary, width = shape("text_model.embeddings.token_embedding.weight")
    activation, heads = told("text", TEXT_HEADS)
    if width != heads * HEAD_WIDTH:
        raise SuiteError(f"a text tower {width} wide with {heads} heads is not known here: heads are {HEAD_WIDTH} wide")
    text = TextEncoderArchitecture(
        vocab_size=vocabulary,
        width=width,
        layers=layers("text_model"),
        mlp_dim=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        max_length=shape("text_model.embeddings.position_embedding.weight")[0],
        activation=activation,
        projection_dim=shape("text_projection.weight")[0],
    )
    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight")
    positions = shape("vision_model.embeddings.position_embedding.weight")[0]
    activation, heads = told("vision", VISION_HEADS)
    vision = VisionEncoderArchitecture(
        width=width,
        layers=layers("vision_model"),
        mlp_dim=shape("vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        heads=heads,
        patch_size=patch,
        picture_size=round((positions - 1) ** 0.5) * patch,
        activation=activation,
    )
    return CLIPArchitecture(text, vision)
