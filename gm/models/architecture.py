"""The shape of each network as plain data: what the weights of a file say, and what the Cells are built from."""

from dataclasses import dataclass, field, replace

from gm.errors import SuiteError

Size = tuple[int, int]  # height, width or top, left
# What the keys of a checkpoint begin with.
UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
EMBEDDERS = "conditioner.embedders."  # of SDXL's text towers, before their number
COND_STAGE = "cond_stage_model."  # of the one text tower of SD 1.x and 2.x
SDXL_SCALE_FACTOR, SD_SCALE_FACTOR = 0.13025, 0.18215  # of latents: of SDXL's autoencoder, and that of SD 1.x and 2.x
HEAD_WIDTH = 64  # of every attention in the family but the UNet of SD 1.x, which has 8 heads at every width


def norm_groups(base_channels: int) -> int:
    """Groups of every GroupNorm of a network: 32 from 128 base channels on, a quarter of the channels below."""
    return min(32, base_channels // 4)


@dataclass(frozen=True)
class UNetArchitecture:
    """A latent-diffusion UNet (Rombach et al. 2021, arXiv 2112.10752; SDXL: Podell et al. 2023, arXiv 2307.01952).

    ``down_depths[level][block]`` and ``up_depths[i][block]`` are the number of transformer blocks after each residual
    block, 0 for no attention; ``up_depths`` is in the order of computation, lowest resolution first, and has one block
    more per level. ``mid_depth`` None is a middle of one residual block without attention (SSD-1B, Vega).
    ``num_heads`` None means heads of width 64.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280)
    down_depths: tuple[tuple[int, ...], ...] = ((0, 0), (2, 2), (10, 10))
    mid_depth: int | None = 10
    up_depths: tuple[tuple[int, ...], ...] = ((10, 10, 10), (2, 2, 2), (0, 0, 0))
    context_dim: int = 2048
    vector_dim: int | None = 2816  # pooled text state + the embedded size numbers; None: no such input (SD 1.x, 2.x)
    num_heads: int | None = None
    linear_projection: bool = True  # proj_in/proj_out of a transformer: Linear, or 1x1 convolution (SD 1.x)
    guidance_dim: int | None = None  # width of the embedded guidance scale (consistency models); None: not told it

    @property
    def norm_groups(self) -> int:
        return norm_groups(self.channels[0])

    @property
    def time_dim(self) -> int:
        return 4 * self.channels[0]


@dataclass(frozen=True)
class AutoencoderArchitecture:
    """The KL autoencoder: ``len(channels) - 1`` halvings; latents are multiplied by ``scale_factor`` for the UNet."""

    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks_per_level: int = 2
    scale_factor: float = SDXL_SCALE_FACTOR

    @property
    def norm_groups(self) -> int:
        return norm_groups(self.channels[0])

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextEncoderArchitecture:
    """A CLIP text tower, and what a model takes from it.

    ``layout`` names the module tree of its keys: "transformers" (CLIP-L) or "open_clip" (ViT-bigG, ViT-H).
    ``projection_dim`` None: the weights have no projection of the pooled state.
    ``layer``, "penultimate" or "last", is the one whose output conditions the UNet; with ``final_norm`` the norm that
    follows the last layer is applied to it. ``pooled``: the projected last state of the end of text conditions it too.
    ``pad_token``: the id that texts are filled up with; None: the end of text.
    """

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    mlp_dim: int = 3072
    max_length: int = 77
    activation: str = "quick_gelu"  # quick_gelu (OpenAI's weights) or gelu
    layout: str = "transformers"
    projection_dim: int | None = None
    layer: str = "penultimate"
    final_norm: bool = False
    pooled: bool = False
    pad_token: int | None = None

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def layers_below(self) -> int:
        """How many layers the states that condition the UNet have passed."""
        return self.layers - (self.layer == "penultimate")


CLIP_L = TextEncoderArchitecture()
OPEN_CLIP_BIG_G = TextEncoderArchitecture(
    width=1280,
    layers=32,
    mlp_dim=5120,
    activation="gelu",
    layout="open_clip",
    projection_dim=1280,
    pooled=True,
    pad_token=0,  # the token "!"
)
SD_1_CLIP_L = replace(CLIP_L, layer="last", final_norm=True)
SD_2_VIT_H = TextEncoderArchitecture(
    width=1024,
    layers=24,
    mlp_dim=4096,
    activation="gelu",
    layout="open_clip",
    projection_dim=1024,  # in the original file, but unused
    final_norm=True,
    pad_token=0,
)


@dataclass(frozen=True)
class VisionEncoderArchitecture:
    """A CLIP picture tower: a ViT over square patches of a square picture, sides in pixels. The defaults: ViT-L/14."""

    width: int = 1024
    layers: int = 24
    mlp_dim: int = 4096
    heads: int = 16
    patch_size: int = 14
    picture_size: int = 224
    activation: str = "quick_gelu"

    @property
    def patches(self) -> int:
        return (self.picture_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPArchitecture:
    """A whole CLIP: two towers with projections into one space of ``text.projection_dim``."""

    text: TextEncoderArchitecture
    vision: VisionEncoderArchitecture


@dataclass(frozen=True)
class ModelArchitecture:
    """One checkpoint; parts a file lacks are None, or () for the text encoders (in the conditioner's order)."""

    name: str = "sdxl-base"  # sdxl-base | sdxl-refiner | ssd-1b | vega | sd-1 | sd-2 | sdxl-like
    unet: UNetArchitecture | None = field(default_factory=UNetArchitecture)
    autoencoder: AutoencoderArchitecture | None = field(default_factory=AutoencoderArchitecture)
    text_encoders: tuple[TextEncoderArchitecture, ...] = (CLIP_L, OPEN_CLIP_BIG_G)
    size_numbers: int = 6  # base: original, crop and target sizes; refiner: original, crop, aesthetic score (5)

    @property
    def text_prefixes(self) -> tuple[str, ...]:
        """What the keys of each text encoder begin with."""
        if self.name in ("sd-1", "sd-2"):
            return (COND_STAGE,) * len(self.text_encoders)
        return tuple(f"{EMBEDDERS}{index}." for index in range(len(self.text_encoders)))

    @property
    def granularity(self) -> int:
        """What both sides of a picture must be multiples of, in pixels.

        The UNet halves the latents once a level, and its ascent meets the descent only if every half is whole.
        """
        return self.autoencoder.downsampling * 2 ** (len(self.unet.channels) - 1)

    @property
    def unconditional(self) -> str:
        """What stood for no caption in training: "zeros" for text states (SDXL base) or the "empty" caption."""
        return "zeros" if len(self.text_encoders) == 2 else "empty"

    @property
    def latent_scale(self) -> float:
        """What latents are multiplied by for the UNet; known even of a file without its autoencoder."""
        if self.autoencoder is not None:
            return self.autoencoder.scale_factor
        return SD_SCALE_FACTOR if self.name in ("sd-1", "sd-2") else SDXL_SCALE_FACTOR


def size_numbers(count: int, original: Size, crop: Size, target: Size, aesthetic_score: float) -> tuple[float, ...]:
    """The ``count`` numbers a model is told about a picture (``ModelArchitecture.size_numbers``).

    6 (SDXL base): original size, crop corner and target size in pixels, height before width (Podell et al. 2023,
    section 2.2); 5 (its refiner): the aesthetic score, about 1 to 10, in place of the target size; 0: none.

    Raises:
        SuiteError: another count.
    """
    told = {0: (), 5: (*original, *crop, aesthetic_score), 6: (*original, *crop, *target)}
    if count not in told:
        raise SuiteError(f"the UNet is told {count} size numbers: known are 6 (SDXL base), 5 (its refiner) and 0")
    return told[count]


TINY_SDXL = ModelArchitecture(
    name="sdxl-like",
    unet=UNetArchitecture(
        channels=(64, 64, 64),
        down_depths=((0,), (1,), (1,)),
        mid_depth=1,
        up_depths=((1, 1), (1, 1), (0, 0)),
        context_dim=128,
        vector_dim=64 + 6 * 256,
    ),
    autoencoder=AutoencoderArchitecture(channels=(16, 32, 64, 64), blocks_per_level=1),
    text_encoders=(
        TextEncoderArchitecture(vocab_size=627, width=64, layers=2, mlp_dim=256),
        TextEncoderArchitecture(
            vocab_size=627,
            width=64,
            layers=2,
            mlp_dim=256,
            activation="gelu",
            layout="open_clip",
            projection_dim=64,
            pooled=True,
            pad_token=0,
        ),
    ),
)

# What --weight "" builds, by model.architecture.
UNTRAINED = {"sdxl-base": ModelArchitecture(), "tiny": TINY_SDXL}
