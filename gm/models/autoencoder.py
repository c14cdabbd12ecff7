"""The KL autoencoder between pictures and latents (names and tree of the original ``first_stage_model``)."""

from mindspore import Tensor, nn

from gm.compilation import Graph
from gm.models.architecture import AutoencoderArchitecture
from gm.models.attention import MultiHeadAttention
from gm.models.layers import Conv2d, GroupNorm, UpsampleNearest

EPS = 1e-6


class ResidualBlock(nn.Cell):
    """norm, SiLU, 3x3 convolution, twice, around a residual."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, EPS, silu=True)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, EPS, silu=True)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.same = in_channels == out_channels
        if not self.same:
            self.nin_shortcut = Conv2d(in_channels, out_channels, 1)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return (x if self.same else self.nin_shortcut(x)) + h


class PixelAttention(nn.Cell):
    """Single-head self-attention over the pixels; its projections are 1x1 convolutions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, EPS)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)
        self.attention = MultiHeadAttention(1, channels)

    def construct(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)
        out = self.attention(self.rows(self.q(h)), self.rows(self.k(h)), self.rows(self.v(h)), batch)
        out = out.reshape(batch, height * width, channels).transpose(0, 2, 1)
        return x + self.proj_out(out.reshape(batch, channels, height, width))

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], -1).transpose(0, 2, 1).reshape(-1, x.shape[1])


class Middle(nn.Cell):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = PixelAttention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def construct(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Cell):
    """Strided convolution, padded below and to the right only, as the original."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Cell):
    """Repetition, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.double = UpsampleNearest()

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(self.double(x))


class Level(nn.Cell):
    """Residual blocks of one resolution, and the step to the next: ``resample`` None, "downsample" or "upsample"."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, resample: str | None):
        super().__init__()
        widths = [in_channels] + [out_channels] * (blocks - 1)
        self.block = nn.CellList([ResidualBlock(width, out_channels, groups) for width in widths])
        if resample == "downsample":
            self.downsample = Downsample(out_channels)
        elif resample == "upsample":
            self.upsample = Upsample(out_channels)
        self.resample = resample

    def construct(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.resample == "downsample":
            x = self.downsample(x)
        elif self.resample == "upsample":
            x = self.upsample(x)
        return x


class Encoder(nn.Cell):
    """Pictures (B, 3, H, W) -> features (B, 2 * latent channels, H/8, W/8)."""

    def __init__(self, arch: AutoencoderArchitecture):
        super().__init__()
        channels, groups = arch.channels, arch.norm_groups
        self.conv_in = Conv2d(arch.in_channels, channels[0], 3, padding=1)
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.down = nn.CellList(
            [
                Level(inputs[i], channels[i], arch.blocks_per_level, groups, "downsample" if i < last else None)
                for i in range(len(channels))
            ]
        )
        self.mid = Middle(channels[-1], groups)
        self.norm_out = GroupNorm(groups, channels[-1], EPS, silu=True)
        self.conv_out = Conv2d(channels[-1], 2 * arch.latent_channels, 3, padding=1)

    def construct(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Cell):
    """Features (B, latent channels, H/8, W/8) -> pictures (B, 3, H, W)."""

    def __init__(self, arch: AutoencoderArchitecture):
        super().__init__()
        channels, groups = arch.channels, arch.norm_groups
        self.conv_in = Conv2d(arch.latent_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], groups)
        inputs = (*channels[1:], channels[-1])
        # up.0 is the highest resolution, as in the original keys; computation runs from the last to the first.
        self.up = nn.CellList(
            [
                Level(inputs[i], channels[i], arch.blocks_per_level + 1, groups, "upsample" if i else None)
                for i in range(len(channels))
            ]
        )
        self.norm_out = GroupNorm(groups, channels[0], EPS, silu=True)
        self.conv_out = Conv2d(channels[0], arch.in_channels, 3, padding=1)
        self.levels = len(channels)

    def construct(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for index in range(self.levels):
            x = self.up[self.levels - 1 - index](x)
        return self.conv_out(self.norm_out(x))


class Autoencoder(nn.Cell):
    """Encoder and decoder with their 1x1 convolutions around the latents; the latents here are not scaled."""

    def __init__(self, arch: AutoencoderArchitecture):
        super().__init__()
        self.arch = arch
        self.encoder = Encoder(arch)
        self.decoder = Decoder(arch)
        self.quant_conv = Conv2d(2 * arch.latent_channels, 2 * arch.latent_channels, 1)
        self.post_quant_conv = Conv2d(arch.latent_channels, arch.latent_channels, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> moments (B, 8, H/8, W/8): means, then log-variances."""
        return self.quant_conv(self.encoder(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, H/8, W/8), divided by the scale factor -> pictures (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def construct(self, latents: Tensor) -> Tensor:
        return self.decode(latents)


class AutoencoderEncoder(Graph):
    """``Autoencoder.encode`` as a Cell of its own, for a graph of its own."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__(auto_prefix=False)
        self.autoencoder = autoencoder

    def construct(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures)


class AutoencoderDecoder(Graph):
    """``Autoencoder.decode`` as a Cell of its own, for a graph of its own."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__(auto_prefix=False)
        self.autoencoder = autoencoder

    def construct(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)
