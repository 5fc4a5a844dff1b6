import numpy as np
from PIL import Image

from dist_diffusion.observe import grids

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)


def test_grid_places_image_i_at_its_row_and_column():
    sheet = grids.grid(IMAGES, columns=2)
    assert sheet.shape == (12, 12, 3) and sheet.dtype == np.uint8
    for index, image in enumerate(IMAGES):
        row, column = divmod(index, 2)
        assert np.array_equal(sheet[row * 4 : row * 4 + 4, column * 6 : column * 6 + 6], image)
    assert not sheet[8:, 6:].any()


def find(sheet, image):
    """Top and left corners of every occurrence of an image in a sheet."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, image.shape)[:, :, 0]
    return np.argwhere((windows == image).all(axis=(2, 3, 4)))


def test_labelled_grid_holds_every_image_enlarged_in_rows_and_columns():
    names = ["a", "a rather long name"]
    sheet = grids.labelled_grid([("none", IMAGES[:2]), ("classifier", IMAGES[2:4])], names, scale=3)
    places = np.array([find(sheet, image.repeat(3, 0).repeat(3, 1)) for image in IMAGES[:4]])
    assert places.shape == (4, 1, 2)
    (top, left), (same_top, right), (bottom, same_left), _ = places[:, 0]
    assert top == same_top and left == same_left and bottom >= top + 12 and right >= left + 18
    captions, header = sheet[top:, :left], sheet[:top, left:]
    assert (captions < 128).any() and (header < 128).any()


def test_png_round_trip(tmp_path):
    path = str(tmp_path / "previews" / "a.png")
    grids.save_png(path, IMAGES[0])
    assert np.array_equal(np.asarray(Image.open(path)), IMAGES[0])
