"""What is read of a picture before it is trained, once for as long as its file stays the same."""

from dataclasses import dataclass
from functools import cached_property

import PIL

from gm.data import transforms
from gm.data.buckets import Size
from gm.data.notes import FileNotes
from gm.data.sample import PictureFile
from gm.data.sources.sizes import upright_size
from gm.data.transforms import BadPictureError

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"))


@dataclass(frozen=True)
class Headers:
    """Upright sizes of pictures; with ``pixels`` each is decoded whole, to find those that are damaged further in."""

    notes: FileNotes
    pixels: bool = False

    @cached_property
    def kind(self) -> str:
        """What the notes are of: another Pillow may read more."""
        return f"{'pixels' if self.pixels else 'header'} {PIL.__version__}"

    def read(self, picture: PictureFile) -> Size | str:
        """Upright (height, width), or why the picture cannot be used."""
        try:
            size = upright_size(picture) or transforms.picture_size(picture)
            if self.pixels:
                transforms.load(picture)
        except BadPictureError as error:
            return str(error)
        return size

    def of(self, picture: PictureFile) -> Size | str:
        """The same, from the notes where the file is as it was."""
        try:
            return from_json(self.notes.remember(picture.path, self.kind, lambda _: self.read(picture)))
        except OSError as error:
            return error.strerror or str(error)


def from_json(noted: list[int] | Size | str) -> Size | str:
    """A size as it comes back from notes, or the reason why there is none."""
    return noted if isinstance(noted, str) else (noted[0], noted[1])
