"""Diffusers folders: read as original keys, and written from them with everything ``from_pretrained`` asks for."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gm.errors import SuiteError, UsageError
from gm.files import write_json
from gm.models.architecture import CLIP_L, COND_STAGE, EMBEDDERS, ModelArchitecture, TextEncoderArchitecture
from gm.weights import diffusers_config as configs
from gm.weights import layouts
from gm.weights.convert import Item, check_space, convert_file, refuse_inside, total_bytes, write_file
from gm.weights.dtypes import target_tag
from gm.weights.files import BUFFER_ENDINGS, WeightFile, open_weights
from gm.weights.keys import AUTOENCODER, UNET, text_encoder_prefix
from gm.weights.layouts import Sources
from gm.weights.sources import FileSource, TensorFile

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # of weight files; else "model"
TOKENIZER_FILES = ("vocab.json", "merges.txt")


def open_folder(path: Path) -> WeightFile:
    """Open a diffusers folder under original SDXL keys; a part that is not there is left out.

    Raises:
        SuiteError: not such a folder, or files of a part are missing or damaged.
    """
    present = [part for part in PARTS if (path / part).is_dir()]
    if not present:
        raise SuiteError(
            f"{path} is no diffusers folder, none of {', '.join(PARTS)} is in it: give the folder with them"
        )
    opened: list[TensorFile] = []
    try:
        parts = {part: _open_part(path / part, STEMS.get(part, "model"), opened) for part in present}
        _check_index(path, parts)
        sources: Sources = {}
        for part, named in parts.items():
            try:
                prefix, renamed = _from_diffusers(path, part, named, parts)
            except SuiteError as error:
                raise SuiteError(f"{path / part}: {error}") from None
            sources |= {prefix + name: source for name, source in renamed.items()}
    except BaseException:
        for file in opened:
            file.close()
        raise
    return WeightFile(path, sources, "diffusers", opened)


def open_model_folder(path: Path) -> WeightFile:
    """Open a folder with one model of transformers, ``model.safetensors`` or its parts; names stay as they are.

    Raises:
        SuiteError: not such a folder, or files are missing or damaged.
    """
    opened: list[TensorFile] = []
    try:
        return WeightFile(path, _open_part(path, "model", opened), "transformers", opened)
    except BaseException:
        for file in opened:
            file.close()
        raise


def _check_index(path: Path, parts: dict[str, Sources]) -> None:
    index = read_json(path / "model_index.json")
    for part in PARTS:
        if index.get(part, [None])[0] and part not in parts:
            raise SuiteError(f"{path} lacks the folder {part} that its model_index.json names: download it as well")


def read_json(path: Path) -> dict:
    """The object in a JSON file, {} if there is no such file. Raises SuiteError for anything else."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SuiteError(f"{path} is damaged: download it again") from None
    if not isinstance(value, dict):
        raise SuiteError(f"{path} is damaged: download it again")
    return value


def _open_part(folder: Path, stem: str, opened: list[TensorFile]) -> Sources:
    """All tensors of a part, from one file or from shards; full precision rather than a variant."""
    for variant in ("", ".fp16", ".bf16"):
        whole = folder / f"{stem}{variant}.safetensors"
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if whole.exists():
            files = [whole]
        elif index.exists():
            files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
        else:
            continue
        break
    else:
        pickles = [name.name for name in sorted(folder.glob("*.bin"))]
        if pickles:
            raise SuiteError(f"{folder} has only {pickles[0]}, a torch pickle: download its .safetensors instead")
        raise SuiteError(f"{folder} has no {stem}.safetensors: download it")
    sources: Sources = {}
    for file in files:
        if not file.exists():
            raise SuiteError(f"{file} is missing, one of {len(files)} parts: download it as well")
        opened.append(TensorFile(file))
        entries = opened[-1].entries.items()
        sources |= {
            name: FileSource(opened[-1], entry, entry.shape)
            for name, entry in entries
            if not name.endswith(BUFFER_ENDINGS)
        }
    return sources


def _from_diffusers(path: Path, part: str, named: Sources, parts: dict[str, Sources]) -> tuple[str, Sources]:
    """Prefix, and original names without it, of one part."""
    if part == "unet":
        return UNET, layouts.unet_from_diffusers(named)
    if part == "vae":
        return AUTOENCODER, layouts.autoencoder_from_diffusers(named)
    if part == "text_encoder_2":
        place = 1 if "text_encoder" in parts else 0  # the refiner has this one only
        return f"{EMBEDDERS}{place}.model.", layouts.open_clip_from_diffusers(named)
    if "text_encoder_2" in parts:
        return f"{EMBEDDERS}0.transformer.", layouts.clip_from_diffusers(named)
    # The text tower of SD 2.x is open_clip's, that of SD 1.x OpenAI's.
    if read_json(path / part / "config.json").get("hidden_act") == "gelu":
        return f"{COND_STAGE}model.", layouts.open_clip_from_diffusers(named)
    return f"{COND_STAGE}transformer.", layouts.clip_from_diffusers(named)


def diffusers_to_ckpt(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """A diffusers folder to a ``.ckpt`` with original names; ``dtype``: "F32", "F16", "BF16", or None to keep."""
    if not Path(source).is_dir():
        raise SuiteError(f"{source} is no diffusers folder: give the folder with unet, vae and text_encoder in it")
    convert_file(source, target, "ckpt", dtype)


def ckpt_to_diffusers(
    source: str | Path, target: str | Path, dtype: str | None = None, tokenizer: str | Path | None = None
) -> None:
    """A weight file to a diffusers folder, which appears whole or not at all.

    ``tokenizer``: a folder with vocab.json and merges.txt for all text encoders, or with the subfolders ``tokenizer``
    and ``tokenizer_2``, such as another diffusers folder. Without it the pipeline must be given its tokenizers.

    Raises:
        UsageError: the target exists, or the tokenizer is no such folder.
        SuiteError: broken input, or a network that diffusers cannot describe.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists: give the name of a new folder")
    refuse_inside(target, source)
    with open_weights(source) as weights:
        weights.check_whole()
        architecture = weights.architecture()
        tokenizers = _find_tokenizers(tokenizer, architecture) if tokenizer else {}
        parts = _parts(weights, architecture)
        items = {part: _items(weights, named, dtype) for part, (_, named, _) in parts.items()}
        check_space(target, sum(map(total_bytes, items.values())))
        with _appearing(target) as folder:
            for part, (config, _, config_name) in parts.items():
                write_json(folder / part / config_name, config)
                if items[part]:
                    file = folder / part / f"{STEMS.get(part, 'model')}.safetensors"
                    write_file(file, items[part], "safetensors")
            if architecture.unet and architecture.autoencoder and architecture.text_encoders:
                write_json(folder / "model_index.json", configs.model_index(architecture))
            for name, (origin, pad_token) in tokenizers.items():
                _copy_tokenizer(origin, folder / name, pad_token)


def _items(weights: WeightFile, named: Sources, dtype: str | None) -> list[Item]:
    view = WeightFile(weights.path, named, "diffusers", weights.files)
    return [(view, name, target_tag(view.dtype(name), dtype)) for name in named]


def _parts(weights: WeightFile, architecture: ModelArchitecture) -> dict[str, tuple[configs.Config, Sources, str]]:
    """Folder -> its configuration, its tensors under diffusers names, and the name of the configuration file."""

    def under(prefix: str) -> Sources:
        names = [name for name in weights.names() if name.startswith(prefix)]
        return {name[len(prefix) :]: weights.sources[name] for name in names}

    name, parts = architecture.name, {}
    size = 64 if name in ("sd-1", "sd-2") else 128
    if unet := architecture.unet:
        parts["unet"] = configs.unet_config(unet), layouts.unet_to_diffusers(under(UNET), unet), "config.json"
    if autoencoder := architecture.autoencoder:
        config = configs.autoencoder_config(autoencoder, size * autoencoder.downsampling)
        parts["vae"] = config, layouts.autoencoder_to_diffusers(under(AUTOENCODER), autoencoder), "config.json"
    for index, encoder in enumerate(architecture.text_encoders):
        named = under(text_encoder_prefix(architecture, index))
        # Diffusers takes normed states from the last layer only, so it drops those above the one that is used.
        layers = encoder.layers_below if encoder.final_norm else encoder.layers
        if encoder.layout == "open_clip":
            named = layouts.open_clip_to_diffusers(named, layers, encoder.pooled)
        config = configs.text_encoder_config(encoder, layers, encoder.pooled)
        parts[f"text_encoder{_number(encoder)}"] = config, named, "config.json"
    parts["scheduler"] = configs.scheduler_config(name), {}, "scheduler_config.json"
    return parts


def _number(encoder: TextEncoderArchitecture) -> str:
    """Diffusers counts the pooled encoder as the second, also where it is the only one (the refiner)."""
    return "_2" if encoder.pooled else ""


def tokenizer_folders(encoders: Sequence[TextEncoderArchitecture]) -> list[str]:
    """Where a diffusers folder keeps the tokenizer of each text encoder."""
    return [f"tokenizer{_number(encoder)}" for encoder in encoders]


def _find_tokenizers(path: str | Path, architecture: ModelArchitecture) -> dict[str, tuple[Path, int | None]]:
    """Folder name in the result -> the folder its tokenizer is copied from, and the id it pads with."""
    path = Path(path)
    encoders = architecture.text_encoders or (CLIP_L,)
    found = {}
    for name, encoder in zip(tokenizer_folders(encoders), encoders):
        origin = path / name if (path / name).is_dir() else path
        missing = [file for file in TOKENIZER_FILES if not (origin / file).exists()]
        if missing:
            raise UsageError(f"--tokenizer {origin} lacks {' and '.join(missing)}: give a folder with a CLIP tokenizer")
        found[name] = origin, encoder.pad_token
    return found


def _copy_tokenizer(origin: Path, target: Path, pad_token: int | None) -> None:
    target.mkdir()
    for file in TOKENIZER_FILES:
        shutil.copyfile(origin / file, target / file)
    pad = "<|endoftext|>" if pad_token is None else "!"  # "!" is id 0, OpenCLIP's
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    write_json(target / "special_tokens_map.json", special)
    write_json(
        target / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special},
    )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name when the block ends well, and vanishes if it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
