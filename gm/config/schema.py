"""The one schema: every setting of the suite with its type, default, unit, bounds and one line of help.

A setting ``section.leaf`` is a key of the YAML files, ``section.leaf=value`` on the command line and a flag, which is
the leaf's name unless ``flag`` says otherwise. ``--help`` and ``docs/configuration.md`` are made from it; the
sections themselves are in ``gm/config/sections``.
"""

from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from gm.config.sections.data import CacheConfig, DataConfig, ModelConfig
from gm.config.sections.machine import LaunchConfig, ParallelConfig
from gm.config.sections.sample import SampleConfig
from gm.config.sections.setting import setting
from gm.config.sections.training import DiffusionConfig, OptimConfig, TrainConfig, ValidationConfig


@dataclass
class Config:
    task: str = setting(
        "train",
        "train; cache: encode the data once; check: read the data and report. The sampling demo: txt2img or img2img",
        choices=("train", "cache", "check", "img2img"),
    )
    dry_run: bool = setting(False, "training: build everything and report it, but take no step")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def to_yaml(self) -> str:
        """This configuration as YAML that ``load(["--config", file])`` reads back to an equal one."""
        from omegaconf import OmegaConf

        plain = asdict(self, dict_factory=lambda items: {k: escape(v) if isinstance(v, str) else v for k, v in items})
        return OmegaConf.to_yaml(OmegaConf.create(plain))


def escape(text: str) -> str:
    """Keep OmegaConf from taking ``${...}`` in a plain text for a reference to another value."""
    return text.replace("${", "\\${")


@dataclass(frozen=True)
class Setting:
    """One leaf of the schema: its dotted ``path``, ``flag`` without dashes, type, default and metadata.

    A dataclass as ``type`` means a list of them.
    """

    path: str
    flag: str
    type: type
    optional: bool
    default: Any
    properties: dict[str, Any]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def entries(self) -> dict[str, "Setting"]:
        """The keys of each item, if this is a list."""
        if not is_dataclass(self.type):
            return {}
        return {leaf.name: _of(leaf, f"{self.path}.{leaf.name}") for leaf in fields(self.type)}

    @property
    def expected(self) -> str:
        """The kind of value, as an error message calls it."""
        choices = self.properties.get("choices")
        if choices:
            return "one of " + ", ".join(map(str, choices))
        if self.entries:
            return "a list of {" + ", ".join(self.entries) + "}"
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.type]
        words = {
            "at_least": "of at least",
            "above": "above",
            "at_most": "of at most",
            "below": "below",
            "multiple_of": "that is a multiple of",
        }
        bounds = [f"{word} {self.properties[key]}" for key, word in words.items() if key in self.properties]
        return " ".join([kind, " and ".join(bounds)]).rstrip() + (" or none" if self.optional else "")


def _settings() -> dict[str, Setting]:
    found = {}
    for part in fields(Config):
        owner = part.default_factory if isinstance(part.default_factory, type) else None
        for leaf in fields(owner) if owner else [part]:
            path = f"{part.name}.{leaf.name}" if owner else part.name
            found[path] = _of(leaf, path)
    return found


def _of(leaf: Field, path: str) -> Setting:
    types = [kind for kind in getattr(leaf.type, "__args__", (leaf.type,)) if kind not in (type(None), Ellipsis)]
    optional = leaf.type is not types[0] and not is_dataclass(types[0])
    return Setting(path, leaf.metadata.get("flag", leaf.name), types[0], optional, leaf.default, dict(leaf.metadata))


SETTINGS: dict[str, Setting] = _settings()

TRAIN_SECTIONS = ("", "model", "data", "cache", "diffusion", "optim", "train", "validation", "launch", "parallel")
SAMPLE_SECTIONS = ("", "model", "diffusion", "sample", "launch")
EVAL_SECTIONS = ("", "model", "data", "cache", "diffusion", "validation", "launch", "sample")
# Whose leaves are flags at a door: two sections share some names (seed, save_path). Dotted keys reach all of them.
DOOR_SECTIONS = {"train": TRAIN_SECTIONS, "sample": SAMPLE_SECTIONS, "eval": EVAL_SECTIONS}

# How section sample is set at the door of training, as SimpleTuner and diffusers call these flags.
VALIDATION_FLAGS: dict[str, str] = {
    "validation_prompt": "sample.prompt",
    "validation_negative_prompt": "sample.negative_prompt",
    "validation_sampler": "sample.sampler",
    "validation_steps": "sample.sample_step",
    "validation_guidance": "sample.guidance_scale",
    "validation_seed": "sample.seed",
    "num_validation_images": "sample.num_images",
    "sample_batch_size": "sample.batch_size",
}
