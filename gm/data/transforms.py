"""From a picture file to what the autoencoder reads, and the numbers that tell SDXL how it was framed."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

from gm.data.buckets import Size
from gm.models.architecture import size_numbers

ORIENTATION_TAG = 0x0112
TURNS = {  # what makes a picture of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRANSPOSED = {TURNS[orientation] for orientation in (5, 6, 7, 8)}  # these swap height and width
FILTER = "lanczos"


class Openable(Protocol):
    """A ``Path``, or a picture within a file (``gm.data.sample.PictureFile``)."""

    def open(self, mode: str) -> BinaryIO: ...


class BadPictureError(Exception):
    """A picture that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Framing:
    """How a picture was brought to its size: mirrored if ``flip``, resized to ``resized``, cropped at (top, left).

    All pairs are (height, width). ``top`` and ``left`` count in the resized and already mirrored picture, so they say
    where the crop lies in what the network sees.
    """

    original: Size
    resized: Size
    top: int
    left: int
    target: Size
    flip: bool = False

    def time_ids(self, count: int = 6, aesthetic_score: float = 6.0) -> np.ndarray:
        """What a model is told of this framing, ``gm.models.architecture.size_numbers``: (count,) float32."""
        told = size_numbers(count, self.original, (self.top, self.left), self.target, aesthetic_score)
        return np.array(told, np.float32)


def frame(
    original: Size,
    target: Size,
    crop: str = "center",
    random_flip: bool = False,
    rng: np.random.Generator | None = None,
) -> Framing:
    """Resize to cover ``target`` keeping the ratio, then crop.

    ``crop`` is center, random, top (the upper middle) or corner (the upper left). The generator always gives the same
    three numbers, so that one option does not change what another one draws.
    """
    height, width = original
    scale = max(target[0] / height, target[1] / width)
    resized = (max(target[0], round(height * scale)), max(target[1], round(width * scale)))
    spare = (resized[0] - target[0], resized[1] - target[1])
    draws = rng.random(3) if rng is not None else (0, 0, 0)
    if crop == "random":
        top, left = int(draws[0] * (spare[0] + 1)), int(draws[1] * (spare[1] + 1))
    else:
        top = spare[0] // 2 if crop == "center" else 0
        left = 0 if crop == "corner" else spare[1] // 2
    return Framing(original, resized, top, left, target, flip=random_flip and bool(draws[2] < 0.5))


def picture_size(file: Openable) -> Size:
    """Upright (height, width) from the header alone. Raises BadPictureError."""
    with _opened(file) as picture:
        width, height = picture.size
        if _turn(picture) in TRANSPOSED:
            width, height = height, width
    return height, width


def load(source: Openable | BinaryIO) -> Image.Image:
    """The upright RGB picture: EXIF orientation applied, alpha over white, 16 bits to 8. Raises BadPictureError."""
    with _opened(source) as picture:
        try:
            turn = _turn(picture)
            return to_rgb(picture if turn is None else picture.transpose(turn))
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise BadPictureError(f"broken picture: {error}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB."""
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    if picture.mode.startswith("I"):  # 16-bit grey; 32-bit files hold 16-bit values in practice
        values = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "L").convert("RGB")
    if picture.mode == "F":
        raise BadPictureError("floating-point picture: save it with 8 or 16 bits")
    return picture.convert("RGB")


def framed(picture: Image.Image, framing: Framing) -> np.ndarray:
    """The pixels of the framed picture: (H, W, 3) uint8."""
    if framing.flip:
        picture = ImageOps.mirror(picture)
    # Only the crop is resized: a 1 x 10,000 picture must not become a 512 x 5,000,000 one on the way.
    scale_y, scale_x = picture.height / framing.resized[0], picture.width / framing.resized[1]
    top, left = framing.top * scale_y, framing.left * scale_x
    bottom = min((framing.top + framing.target[0]) * scale_y, picture.height)
    right = min((framing.left + framing.target[1]) * scale_x, picture.width)
    height, width = framing.target
    if (top, left, bottom, right) != (0, 0, height, width) or picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    return np.asarray(picture)


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Pixels (..., H, W, 3) uint8 as the autoencoder reads them: (..., 3, H, W) float32 in [-1, 1]."""
    values = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32)
    values /= np.float32(127.5)
    values -= np.float32(1)
    return values


def apply(picture: Image.Image, framing: Framing) -> np.ndarray:
    """The framed picture: (3, H, W) float32 in [-1, 1]."""
    return normalized(framed(picture, framing))


def decode(file: Openable, framing: Framing) -> np.ndarray:
    """Read and frame a picture: (3, H, W) float32 in [-1, 1]. BadPictureError also when its size has changed."""
    picture = load(file)
    if (picture.height, picture.width) != framing.original:
        raise BadPictureError("its size changed while the program ran")
    return apply(picture, framing)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What a picture just opened needs to be upright, from its header."""
    if picture.format == "TIFF":
        return None  # Pillow turns these itself
    # PNG's own getexif decodes all pixels to look for EXIF data behind them, where cameras do not put it.
    return TURNS.get(Image.Image.getexif(picture).get(ORIENTATION_TAG))


@contextmanager
def _opened(source: Openable | BinaryIO) -> Iterator[Image.Image]:
    with ExitStack() as stack:
        yield _open(source, stack)


def _open(source: Openable | BinaryIO, stack: ExitStack) -> Image.Image:
    try:
        stream = source if hasattr(source, "read") else stack.enter_context(source.open("rb"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return stack.enter_context(Image.open(stream))
    except FileNotFoundError:
        raise BadPictureError("the file is gone") from None
    except Image.DecompressionBombError:
        raise BadPictureError(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        raise BadPictureError("not a picture Pillow can read" if unknown else f"broken picture: {error}") from None
