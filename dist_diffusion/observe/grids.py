"""Grids of images as arrays and PNG files."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dist_diffusion.storage import publish

_MARGIN = 4
_BACKGROUND = 255


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 NHWC images row by row, `columns` wide, as one uint8 HWC image; a short last row ends black."""
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    cells = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def labelled_grid(rows: Sequence[tuple[str, np.ndarray]], column_names: Sequence[str], scale: int) -> np.ndarray:
    """Rows of uint8 NHWC RGB images, one size, each `scale` times as large, as one uint8 HWC image.

    A row's caption stands at its left, the column names on top; columns are as wide as the widest name.
    """
    font = ImageFont.load_default()
    boxes = [font.getbbox(text) for text in (*column_names, *(caption for caption, _ in rows), "|")]
    text_height = math.ceil(max(box[3] for box in boxes)) + 2 * _MARGIN
    left = math.ceil(max(font.getlength(caption) for caption, _ in rows)) + 2 * _MARGIN
    height, width = (side * scale for side in rows[0][1].shape[1:3])
    cell = max(width, *(math.ceil(font.getlength(name)) for name in column_names)) + _MARGIN
    size = (left + cell * len(column_names), text_height + (height + _MARGIN) * len(rows))
    canvas = Image.new("RGB", size, (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(column_names):
        draw.text((left + column * cell, _MARGIN), name, fill=0, font=font)
    for index, (caption, images) in enumerate(rows):
        assert len(images) == len(column_names), f"{caption}: {len(images)} images for {len(column_names)} columns"
        top = text_height + index * (height + _MARGIN)
        draw.text((_MARGIN, top + (height - text_height) // 2 + _MARGIN), caption, fill=0, font=font)
        for column, image in enumerate(images):
            enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
            canvas.paste(Image.fromarray(enlarged), (left + column * cell, top))
    return np.asarray(canvas)


def png_bytes(image: np.ndarray) -> bytes:
    """A uint8 HWC image as the content of a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    return encoded.getvalue()


def save_png(path: str, image: np.ndarray) -> None:
    """Publishes a uint8 HWC image as a PNG file."""
    publish.write_bytes(path, png_bytes(image))
