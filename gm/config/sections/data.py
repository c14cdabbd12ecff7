"""Settings of the weights, the pictures and captions, and their cache."""

from dataclasses import dataclass

from gm.config.sections.setting import setting


@dataclass
class ModelConfig:
    weight: str = setting("", "weights to start from: .ckpt, .safetensors or a diffusers folder; empty: random weights")
    architecture: str = setting(
        "sdxl-base", "networks to build when --weight is empty (a file says its own)", choices=("sdxl-base", "tiny")
    )
    attention: str = setting(
        "auto",
        "auto and flash take flash attention where the device has it and a layer fits; math: nowhere",
        choices=("auto", "flash", "math"),
    )
    tokenizer: str | None = setting(
        "openai/clip-vit-large-patch14",
        "tokenizer of the text encoders: a local folder with vocab.json and merges.txt, or a hub name; a diffusers "
        "folder given as --weight has its own",
    )
    tokenizer_2: str | None = setting(
        None, "tokenizer of the second text encoder; default: that of the first, as in SDXL"
    )
    max_token_length: int = setting(
        75,
        "longest text that is seen: what is beyond 75 tokens goes through the text encoders 75 at a time",
        unit="tokens",
        at_least=75,
        multiple_of=75,
    )


@dataclass
class DatasetConfig:
    """One of several data sets that are mixed: an entry of ``data.datasets``."""

    path: str = setting("", "its folder or tar shards")
    repeats: float = setting(1.0, "how often an epoch has each of its pictures", unit="times", above=0)
    weight: float | None = setting(None, "its share of an epoch, beside the weights of the others", above=0)
    loss_weight: float = setting(1.0, "how much its pictures count in the loss", at_least=0)
    instance_prompt: str = setting("", "the caption of all its pictures")
    missing_caption: str | None = setting(None, "instead of --missing_caption", choices=("error", "empty", "filename"))


@dataclass
class DataConfig:
    path: str = setting("", "folder of pictures and captions, or tar shards: shards/{000..012}.tar", flag="data_path")
    datasets: tuple[DatasetConfig, ...] = setting(
        (), "several data sets to mix, instead of --data_path: a list of {path, repeats or weight, ...}"
    )
    instance_prompt: str = setting("", "DreamBooth: the caption of all pictures, in place of their own")
    with_prior_preservation: bool = setting(
        False,
        "DreamBooth: train pictures of the class beside those of the instance, so that it is not forgotten",
    )
    class_data_path: str = setting("", "folder of the pictures of the class")
    class_prompt: str = setting("", "what the pictures of the class are drawn and trained with")
    num_class_images: int = setting(
        100, "pictures of the class; those that are lacking are drawn before training", unit="pictures", at_least=1
    )
    prior_loss_weight: float = setting(1.0, "how much the loss of the class counts", at_least=0)
    resolution: int = setting(1024, "side of the square training picture", unit="pixels", at_least=32, multiple_of=32)
    crop: str = setting(
        "center",
        "which part of the resized picture is kept; top and corner: its upper middle and upper left",
        choices=("center", "random", "top", "corner"),
    )
    buckets: bool = setting(
        False, "train each picture at the size whose aspect ratio is nearest to its own, not at the square"
    )
    random_flip: bool = setting(False, "mirror half of the pictures, chosen per sample and epoch")
    per_batch_size: int = setting(1, "samples per step and device", unit="samples", at_least=1)
    num_parallel_workers: int = setting(
        2,
        "threads that read and transform pictures; processes where a cache of many is made",
        unit="threads",
        at_least=1,
    )
    caption_dropout: float = setting(
        0.0, "share of captions replaced by the empty one, for guidance", unit="0 to 1", at_least=0, at_most=1
    )
    on_bad_sample: str = setting(
        "error", "a picture that cannot be read: stop, or go on without it", choices=("error", "skip")
    )
    minimum_image_size: int = setting(8, "a picture with a shorter side cannot be used", unit="pixels", at_least=1)
    verify: str = setting(
        "header",
        "what is read of every picture before training: its header, or all pixels (once, as long as it is the same)",
        choices=("header", "pixels"),
    )
    missing_caption: str = setting(
        "error",
        "a picture without a caption: stop, train it unconditionally, or use its file name",
        choices=("error", "empty", "filename"),
    )
    aesthetic_score: float = setting(6.0, "SDXL refiner: the score it is told all pictures have", at_least=0)
    shuffle: bool = setting(True, "a new order of the samples in every epoch")
    drop_last: bool = setting(False, "leave out an epoch's last samples when they do not fill a batch")


@dataclass
class CacheConfig:
    latent: bool = setting(
        False,
        "task cache: write the autoencoder's output; task train: read it, build no autoencoder",
        flag="cache_latent",
    )
    text_embedding: bool = setting(
        False, "the same for the text encoders; must agree with --cache_latent", flag="cache_text_embedding"
    )
    path: str = setting("./cache_data", "folder of the cache", flag="cache_path")
    dtype: str = setting("fp16", "precision the cache is kept in", choices=("fp16", "fp32"), flag="cache_dtype")
    variants: int = setting(
        1, "random crops and flips kept of each picture", unit="entries", at_least=1, flag="cache_variants"
    )
