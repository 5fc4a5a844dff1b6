import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data.png import encode


@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 28), (7, 5), (255, 256), (1, 65_534), (300, 1000)])
def test_png_is_lossless(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert image.format == "PNG" and image.mode == "L"
        image.verify()
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (300, 256), (1, 30_000)])
def test_colour_is_lossless_too(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        image.verify()
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_golden_bytes() -> None:
    pixels = np.arange(300, dtype=np.uint8).reshape(15, 20)
    assert (
        hashlib.sha256(encode(pixels)).hexdigest() == "63371ee4aec6eeae879213ec6fdfbf4819c6cbd21482766244175566d13e0bdd"
    )
