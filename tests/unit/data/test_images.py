import io

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import images
from dist_diffusion.data.images import UndecodableError

NEARLY_ONE = 1 - 2**-53


def _encoded(image: Image.Image, image_format: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def _coordinates(height: int, width: int) -> Image.Image:
    """Red says the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "RGB"])
def test_decode_is_always_rgb(mode: str) -> None:
    image = Image.fromarray(_noise(6, 9)).convert(mode)
    decoded = images.decode(_encoded(image, "PNG"))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_decode_of_a_print_shop_jpeg() -> None:
    decoded = images.decode(_encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert decoded.mode == "RGB"
    red, green, blue = np.asarray(decoded)[8, 8].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_what_cannot_be_decoded_says_why() -> None:
    jpeg = _encoded(Image.fromarray(_noise(40, 40)), "JPEG")
    png = _encoded(Image.fromarray(_noise(40, 40)), "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    for data in (b"", b"not an image", jpeg[: len(jpeg) // 2], png[: len(png) // 2], bytes(flipped), png[:20]):
        with pytest.raises(UndecodableError, match=r"\w"):
            images.decode(data)
    with pytest.raises(UndecodableError, match="known format"):
        images.decode(_encoded(Image.fromarray(_noise(4, 4)), "TIFF"))


def test_16_bit_grey_is_refused_where_rgb_would_clip_it() -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    with pytest.raises(UndecodableError, match="more than 8 bits"):
        images.decode(_encoded(image, "PNG"))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (100, 33), (9, 30), (5, 5), (64, 65), (255, 127)])
def test_both_crops_have_the_wanted_size(height: int, width: int) -> None:
    image = Image.fromarray(_noise(height, width))
    assert images.fit(image, 16).size == (16, 16)
    for uniforms in ((0.0, 0.0, 0.0), (NEARLY_ONE,) * 3, (0.5, NEARLY_ONE, 0.0)):
        assert images.random_crop(image, 16, uniforms).size == (16, 16)


def test_fit_of_the_right_size_changes_nothing() -> None:
    pixels = _noise(16, 16)
    assert np.array_equal(images.to_uint8(images.fit(Image.fromarray(pixels), 16)), pixels)


def test_fit_halves_by_boxes_first() -> None:
    """64 to 16 is two halvings: the mean of 4x4 pixels, which bicubic alone is not."""
    pixels = _noise(64, 64)
    means = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    fitted = images.to_uint8(images.fit(Image.fromarray(pixels), 16))
    assert np.abs(fitted - means).max() <= 2  # four roundings, half a level up at most
    bicubic = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(bicubic - means).max() > 5


def test_fit_is_bicubic_below_twice_the_size() -> None:
    pixels = _noise(31, 31)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(images.to_uint8(images.fit(Image.fromarray(pixels), 16)), np.asarray(expected))


def test_fit_takes_the_centre() -> None:
    wide = images.to_uint8(images.fit(_coordinates(16, 31), 16))
    assert wide[0, :, 0].tolist() == list(range(7, 23))
    tall = images.to_uint8(images.fit(_coordinates(31, 16), 16))
    assert tall[:, 0, 1].tolist() == list(range(7, 23))


def test_random_crop_spans_80_to_100_percent_and_all_edges() -> None:
    image = _coordinates(20, 20)  # 16 is 80 % of 20: at the largest side it is not scaled
    corner = images.to_uint8(images.random_crop(image, 16, (NEARLY_ONE, 0.0, NEARLY_ONE)))
    assert corner[0, :, 0].tolist() == list(range(16))
    assert corner[:, 0, 1].tolist() == list(range(4, 20))
    lefts = [
        int(images.to_uint8(images.random_crop(image, 16, (NEARLY_ONE, (i + 0.5) / 50, 0.0)))[0, 0, 0])
        for i in range(50)
    ]
    assert lefts == sorted(lefts)
    assert np.bincount(lefts).tolist() == [10] * 5
    smallest = images.random_crop(image, 16, (0.0, 0.7, 0.7))
    assert np.array_equal(images.to_uint8(smallest), images.to_uint8(images.fit(image, 16)))


def test_random_crop_halves_by_boxes_before_the_chosen_side() -> None:
    image = _coordinates(40, 40)
    cropped = images.to_uint8(images.random_crop(image, 16, (NEARLY_ONE, 0.0, 0.0)))
    halved = np.asarray(image.resize((20, 20), Image.Resampling.BOX))
    assert np.array_equal(cropped, halved[:16, :16])


def test_flip_mirrors_left_to_right() -> None:
    pixels = _noise(5, 8)
    flipped = images.to_uint8(Image.fromarray(pixels), flip=True)
    assert np.array_equal(flipped, pixels[:, ::-1])
    for array in (flipped, images.to_uint8(Image.fromarray(pixels))):
        assert array.flags.c_contiguous and array.dtype == np.uint8
