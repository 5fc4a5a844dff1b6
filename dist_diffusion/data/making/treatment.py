"""What happens to an original on its way into a shard: checked, and resized where that is asked for."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dist_diffusion.data import images, png, squares
from dist_diffusion.errors import ConfigError

MODES = ("box", "bicubic", "crop")
"""How the centre square becomes N pixels wide: halved by box filter and then bicubically, as ADM does; bicubically at
once; or cut out of the middle, no pixel changed."""


@dataclass(frozen=True)
class Resize:
    """To squares of `size` pixels, lossless PNG, or JPEG of a quality of 1 to 100. Upright, RGB."""

    size: int
    mode: str = "box"
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"--resize={self.size} must be at least 1")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality={self.jpeg_quality} must be 1 to 100")

    def apply(self, data: bytes) -> tuple[bytes, str]:
        """The new file and its extension. UndecodableError where it cannot be made."""
        square = self._square(images.decode(data))
        if self.jpeg_quality is None:
            return png.encode(np.asarray(square)), "png"
        stream = io.BytesIO()
        # Colour at full resolution: at these sizes halving it shows.
        square.save(stream, "JPEG", quality=self.jpeg_quality, subsampling=0)
        return stream.getvalue(), "jpg"

    def _square(self, image: Image.Image) -> Image.Image:
        if self.mode == "box":
            return squares.fit(image, self.size)
        side = self.size if self.mode == "crop" else min(image.size)
        if min(image.size) < side:
            raise images.UndecodableError(f"{image.width}x{image.height} pixels, smaller than the crop of {side}")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Treatment:
    """Every image's header and end are looked at; `decode` reads all of it, `resize` changes it."""

    decode: bool = False
    resize: Resize | None = None

    def apply(self, data: bytes, extension: str) -> tuple[bytes, str, images.Header]:
        """The file that enters the shard, its extension and header. UndecodableError where it is not to."""
        if self.resize is not None:
            data, extension = self.resize.apply(data)
        header = images.inspect(data)
        if self.decode and self.resize is None:
            images.decode(data)
        return data, extension, header

    def identity(self) -> dict[str, Any]:
        """What it adds to the manifest's source: nothing where originals are kept as they are."""
        found: dict[str, Any] = {"decoded": True} if self.decode and self.resize is None else {}
        if self.resize is not None:
            output = "png" if self.resize.jpeg_quality is None else f"jpeg, quality {self.resize.jpeg_quality}"
            found["resized"] = {"size": self.resize.size, "mode": self.resize.mode, "output": output}
        return found


AS_IS = Treatment()
