import io

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import images, squares

NEARLY_ONE = 1 - 2**-53


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def _coordinates(height: int, width: int) -> Image.Image:
    """Red says the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (100, 33), (9, 30), (5, 5), (64, 65), (255, 127)])
def test_both_crops_have_the_wanted_size(height: int, width: int) -> None:
    image = Image.fromarray(_noise(height, width))
    assert squares.fit(image, 16).size == (16, 16)
    for uniforms in ((0.0, 0.0, 0.0), (NEARLY_ONE,) * 3, (0.5, NEARLY_ONE, 0.0)):
        assert squares.random_crop(image, 16, uniforms).size == (16, 16)


def test_fit_of_the_right_size_changes_nothing() -> None:
    pixels = _noise(16, 16)
    assert np.array_equal(images.to_uint8(squares.fit(Image.fromarray(pixels), 16)), pixels)


def test_fit_halves_by_boxes_first() -> None:
    """64 to 16 is two halvings: the mean of 4x4 pixels, which bicubic alone is not."""
    pixels = _noise(64, 64)
    means = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    fitted = images.to_uint8(squares.fit(Image.fromarray(pixels), 16))
    assert np.abs(fitted - means).max() <= 2  # four roundings, half a level up at most
    bicubic = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(bicubic - means).max() > 5


def test_fit_is_bicubic_below_twice_the_size() -> None:
    pixels = _noise(31, 31)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(images.to_uint8(squares.fit(Image.fromarray(pixels), 16)), np.asarray(expected))


def test_fit_takes_the_centre() -> None:
    wide = images.to_uint8(squares.fit(_coordinates(16, 31), 16))
    assert wide[0, :, 0].tolist() == list(range(7, 23))
    tall = images.to_uint8(squares.fit(_coordinates(31, 16), 16))
    assert tall[:, 0, 1].tolist() == list(range(7, 23))


def test_random_crop_spans_80_to_100_percent_and_all_edges() -> None:
    image = _coordinates(20, 20)  # 16 is 80 % of 20: at the largest side it is not scaled
    corner = images.to_uint8(squares.random_crop(image, 16, (NEARLY_ONE, 0.0, NEARLY_ONE)))
    assert corner[0, :, 0].tolist() == list(range(16))
    assert corner[:, 0, 1].tolist() == list(range(4, 20))
    lefts = [
        int(images.to_uint8(squares.random_crop(image, 16, (NEARLY_ONE, (i + 0.5) / 50, 0.0)))[0, 0, 0])
        for i in range(50)
    ]
    assert lefts == sorted(lefts)
    assert np.bincount(lefts).tolist() == [10] * 5
    smallest = squares.random_crop(image, 16, (0.0, 0.7, 0.7))
    assert np.array_equal(images.to_uint8(smallest), images.to_uint8(squares.fit(image, 16)))


def test_random_crop_halves_by_boxes_before_the_chosen_side() -> None:
    image = _coordinates(40, 40)
    cropped = images.to_uint8(squares.random_crop(image, 16, (NEARLY_ONE, 0.0, 0.0)))
    halved = np.asarray(image.resize((20, 20), Image.Resampling.BOX))
    assert np.array_equal(cropped, halved[:16, :16])


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=98, subsampling=0)
    return stream.getvalue()


def _slope(height: int, width: int) -> np.ndarray:
    """Red rises from left to right, green from top to bottom: a shift of the picture is a shift of all its values."""
    rows, columns = np.mgrid[:height, :width]
    red, green = columns * 255 / (width - 1), rows * 255 / (height - 1)
    return np.stack([red, green, 0 * rows + 128], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("crop", [None, (0.0, 0.0, 0.0), (0.7, NEARLY_ONE, 0.3), (NEARLY_ONE, 0.4, NEARLY_ONE)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 200), (375, 500), (172, 307), (1001, 777), (2047, 2200)])
def test_of_a_jpeg_the_same_part_is_seen_as_when_it_is_decoded_in_full(
    height: int, width: int, crop: squares.Crop | None
) -> None:
    """Halvings by 1, 2, 4, 8, 16 and 32, of sizes that they do not divide."""
    data = _jpeg(_slope(height, width))
    whole = images.decode(data)
    expected = squares.fit(whole, 48) if crop is None else squares.random_crop(whole, 48, crop)
    found = squares.square(data, 48, crop)
    difference = np.asarray(found).astype(int) - np.asarray(expected)
    # The slopes are of 2 to 5 levels a pixel here, so a shift by half a pixel would be 1 to 2.5.
    red, green, constant = difference.mean(axis=(0, 1))
    assert max(abs(red - constant), abs(green - constant)) < 0.5
    # Each of up to five halvings rounds.
    assert abs(constant) < 1.2
    assert np.abs(difference).max() <= 5


def test_a_small_fraction_of_a_large_jpeg_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    real = Image.frombytes

    def counted(mode: str, size: tuple[int, int], *arguments: object) -> Image.Image:
        asked.append(size)
        return real(mode, size, *arguments)

    data = _jpeg(_slope(403, 500))
    monkeypatch.setattr(Image, "frombytes", counted)
    for side in (300, 150, 100, 40, 10):
        squares.square(data, side, None)
    assert asked == [(500, 403), (250, 202), (125, 101), (63, 51), (63, 51)]
