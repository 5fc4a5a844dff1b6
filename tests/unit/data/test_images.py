import io

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import images


def _encoded(image: Image.Image, image_format: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "RGB"])
def test_decode_is_always_rgb(mode: str) -> None:
    image = Image.fromarray(_noise(6, 9)).convert(mode)
    decoded = images.decode(_encoded(image, "PNG"))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_flip_mirrors_left_to_right() -> None:
    pixels = _noise(5, 8)
    flipped = images.to_uint8(images.mirrored(Image.fromarray(pixels)))
    assert np.array_equal(flipped, pixels[:, ::-1])
    for array in (flipped, images.to_uint8(Image.fromarray(pixels))):
        assert array.flags.c_contiguous and array.dtype == np.uint8
