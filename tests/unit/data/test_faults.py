"""What a user's image files can be like, and what is said of each."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import images, squares
from dist_diffusion.data.images import UndecodableError

ORIENTATION = 0x0112


def _noise(height: int = 40, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def _gradient(height: int, width: int) -> np.ndarray:
    """Red says the column, green the row: smooth, so that JPEG keeps it."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 3, rows * 4, rows * 0 + 90], axis=2).astype(np.uint8)


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _oriented(image: Image.Image, image_format: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return _encoded(image, image_format, exif=exif, **options)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def _png(width: int, height: int, bits: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG by its bytes: what Pillow would not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _animated(image_format: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return _encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


def _claims(data: bytes, width: int, height: int) -> bytes:
    """The JPEG file with another size in its header."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


UNKNOWN = "UnidentifiedImageError: no image of a known format"
JPEG_CUT = "the JPEG file is damaged or cut short \\(not enough image data\\)"
TRUNCATED = "OSError: image file is truncated"
ANIMATED = "animated \\(3 frames\\); save the frame that is meant"
DEEP = "more than 8 bits a channel; convert it first"
# Name, file, what decoding says, what the look at its header says (None: it is content).
UNDECODABLE = [
    ("zero-byte", b"", "the file is empty", "the file is empty"),
    ("no-image", b"<html><body>404 Not Found</body></html>", UNKNOWN, UNKNOWN),
    ("TIFF", _encoded(_noise(), "TIFF"), UNKNOWN, UNKNOWN),
    ("half-JPEG", _half(_encoded(_noise(), "JPEG")), JPEG_CUT, "the JPEG file is cut short"),
    ("half-progressive-JPEG", _half(_encoded(_noise(), "JPEG", progressive=True)), JPEG_CUT, "the JPEG file is cut"),
    ("half-JPEG-with-EXIF", _half(_oriented(_noise(), "JPEG", 6)), TRUNCATED, "the JPEG file is cut short"),
    ("JPEG-without-its-last-byte", _encoded(_noise(), "JPEG")[:-1], JPEG_CUT, "the JPEG file is cut short"),
    ("JPEG-cut-in-its-header", _encoded(_noise(), "JPEG")[:100], "Truncated File Read", "Truncated File Read"),
    ("half-PNG", _half(_encoded(_noise(), "PNG")), TRUNCATED, "the PNG file is cut short"),
    ("PNG-without-its-end", _encoded(_noise(), "PNG")[:-12], None, "the PNG file is cut short"),
    ("half-GIF", _half(_encoded(_noise(), "GIF")), TRUNCATED, "the GIF file is cut short"),
    ("half-BMP", _half(_encoded(_noise(), "BMP")), TRUNCATED, "the BMP file is cut short"),
    ("half-WEBP", _half(_encoded(_noise(), "WEBP")), "could not create decoder", "could not create decoder"),
    ("PNG-with-a-flipped-byte", _flipped(_encoded(_noise(), "PNG")), "broken data stream", None),
    ("animated-GIF", _animated("GIF"), ANIMATED, ANIMATED),
    ("animated-PNG", _animated("PNG"), ANIMATED, ANIMATED),
    ("animated-WEBP", _animated("WEBP"), ANIMATED, ANIMATED),
    ("16-bit-grey-PNG", _png(2, 2, 16, 0, bytes(10)), DEEP, DEEP),
    ("16-bit-RGB-PNG", _png(2, 2, 16, 2, bytes(26)), DEEP, DEEP),
    ("16-bit-RGBA-PNG", _png(2, 2, 16, 6, bytes(34)), DEEP, DEEP),
    ("16-bit-grey-alpha-PNG", _png(2, 2, 16, 4, bytes(18)), DEEP, DEEP),
]


def _is_refused(read: Callable[[bytes], object], data: bytes, message: str | None) -> None:
    if message is None:
        read(data)
        return
    with pytest.raises(UndecodableError, match=message):
        read(data)


@pytest.mark.parametrize(("data", "decoding", "inspecting"), [pytest.param(*row[1:], id=row[0]) for row in UNDECODABLE])
def test_what_cannot_be_decoded_says_why(data: bytes, decoding: str | None, inspecting: str | None) -> None:
    _is_refused(images.decode, data, decoding)
    _is_refused(lambda data: squares.square(data, 8, None), data, decoding)
    _is_refused(images.inspect, data, inspecting)


BOMBS = {
    "JPEG": _claims(_encoded(_noise(), "JPEG"), 65_000, 65_000),
    "JPEG-with-EXIF": _claims(_oriented(_noise(), "JPEG", 6), 65_000, 65_000),
    "PNG": _png(30_000, 30_000, 8, 2),
    "PNG-2^31": _png(2**31 - 1, 2**31 - 1, 8, 2),
    # The others hold no such pixels; this one does, 14 KB of them.
    "whole-PNG": _png(9_500, 9_500, 1, 0, bytes(9_500 * 1_189)),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_told_by_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("memory for its pixels was asked for")

    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    for read in (images.decode, images.inspect):
        _is_refused(read, BOMBS[name], r"(\d+x\d+|many) pixels are more than the 89,478,485")


@pytest.mark.parametrize("crop", [None, (0.5, 0.5, 0.5)])
def test_a_strip_is_not_scaled_to_a_bomb(crop: tuple[float, float, float] | None) -> None:
    """Few pixels, which become too many when the smaller side is scaled to the wanted size."""
    data = _encoded(Image.new("RGB", (1, 60_000)), "JPEG")
    assert squares.square(data, 16, crop).size == (16, 16)
    with pytest.raises(UndecodableError, match=r"1x60000 pixels, so narrow that it would become \d+x\d+, more"):
        squares.square(data, 256, crop)


def test_too_little_memory_is_not_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    data = _encoded(_noise(), "PNG")
    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    with pytest.raises(MemoryError):
        images.decode(data)


def test_the_largest_image_is_not_taken_for_a_bomb() -> None:
    data = _png(9_459, 9_459, 1, 0)
    assert 9_459**2 <= images.MAX_PIXELS < 9_500**2
    assert images.inspect(data) == images.Header(9_459, 9_459, "PNG", "1", 1)


INKS = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (40, 128, 200, 60)]


@pytest.mark.parametrize("ink", INKS)
def test_a_cmyk_jpeg_is_shown_as_it_is_printed(ink: tuple[int, ...]) -> None:
    data = _encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    assert images.inspect(data) == images.Header(16, 16, "JPEG", "CMYK", 1)
    *colours, key = ink
    expected = [(255 - colour) * (255 - key) / 255 for colour in colours]
    for decoded, side in ((images.decode(data), 16), (squares.square(data, 8, None), 8)):
        assert (decoded.mode, decoded.size) == ("RGB", (side, side))
        assert np.abs(np.asarray(decoded) - np.array(expected)).max() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
@pytest.mark.parametrize("transparent", [None, 1])
def test_a_palette_is_looked_up_and_what_is_transparent_keeps_its_colour(
    image_format: str, transparent: int | None
) -> None:
    numbers = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.uint8)
    colours = np.array([[255, 0, 0], [1, 2, 3], [0, 128, 255], [77, 0, 77]], dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colours.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    data = _encoded(image, image_format, **options)
    assert images.inspect(data) == images.Header(4, 2, image_format, "P", 1)
    assert np.array_equal(np.asarray(images.decode(data)), colours[numbers])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_grey_becomes_rgb_and_alpha_is_dropped(mode: str) -> None:
    image = _noise(6, 9).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9)))
    colours = np.asarray(image.convert("RGB" if "RGB" in mode else "L"))
    expected = colours if colours.ndim == 3 else np.repeat(colours[:, :, None], 3, axis=2)
    data = _encoded(image, "PNG")
    assert images.inspect(data) == images.Header(9, 6, "PNG", mode, 1)
    assert np.array_equal(np.asarray(images.decode(data)), expected)


# How a camera stores an upright picture: EXIF 2.32, "Orientation" (where the first row and the first column lie).
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_picture_is_decoded_upright(image_format: str, orientation: int) -> None:
    upright = _gradient(48, 64)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    # "lossless" is WEBP's, the others JPEG's: a format's writer passes over what it does not know.
    data = _oriented(stored, image_format, orientation, lossless=True, quality=98, subsampling=0)
    assert images.inspect(data) == images.Header(*stored.size, image_format, "RGB", orientation)
    decoded = np.asarray(images.decode(data)).astype(int)
    assert decoded.shape == upright.shape and np.abs(decoded - upright).max() <= (3 if image_format == "JPEG" else 0)
    if image_format == "JPEG":
        halved = upright.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))[:, 4:28]
        scaled = np.asarray(squares.square(data, 24, None))
        assert scaled.shape == halved.shape and np.abs(scaled - halved).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    upright = _gradient(24, 32)
    decoded = images.decode(_oriented(Image.fromarray(upright), "PNG", orientation))
    assert np.array_equal(np.asarray(decoded), upright)
    assert images.inspect(_oriented(Image.fromarray(upright), "PNG", orientation)).orientation == 1


@pytest.mark.parametrize(
    "exif",
    [b"garbage", b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"],
    ids=["not-EXIF", "orientation-is-text"],
)
def test_damaged_exif_says_nothing_of_the_pixels(exif: bytes) -> None:
    upright = _gradient(24, 32)
    data = _encoded(Image.fromarray(upright), "PNG", exif=b"Exif\0\0" + exif)
    assert images.inspect(data).orientation == 1
    assert np.array_equal(np.asarray(images.decode(data)), upright)


def test_what_some_programs_append_is_ignored() -> None:
    data = _encoded(_noise(), "JPEG")
    # The last as a camera's film may have it, which holds any bytes.
    for tail in (b"\0\0", b"appended", b"film \xff\xda film"):
        assert images.inspect(data + tail) == images.inspect(data)
        assert np.array_equal(np.asarray(images.decode(data + tail)), np.asarray(images.decode(data)))
