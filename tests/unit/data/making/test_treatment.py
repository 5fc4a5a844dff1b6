import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import manifest, shards, sources, squares
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.making.treatment import Resize, Treatment
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import ConfigError, DataError


def _photograph(width: int, height: int) -> Image.Image:
    """Smooth colours that tell a place from another."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).round().astype(np.uint8))


def _file(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def _set(tree: Path, out: Path, treatment: Treatment) -> Manifest:
    source = sources.open_source(str(tree))
    made = shards.make(source, str(out), 17, seed=0, say=lambda _: None, treatment=treatment)
    assert made is not None
    return made


def test_box_is_what_evaluation_sees() -> None:
    image = _photograph(131, 70)
    data, extension = Resize(16, "box").apply(_file(image))
    assert extension == "png"
    assert np.array_equal(_pixels(data), np.asarray(squares.fit(image, 16)))


def test_bicubic_scales_the_centre_square_at_once() -> None:
    image = _photograph(131, 70)
    centre = image.crop((30, 0, 100, 70)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(_pixels(Resize(16, "bicubic").apply(_file(image))[0]), np.asarray(centre))


def test_crop_changes_no_pixel() -> None:
    image = _photograph(131, 70)
    assert np.array_equal(_pixels(Resize(16, "crop").apply(_file(image))[0]), np.asarray(image)[27:43, 57:73])
    with pytest.raises(UndecodableError, match="131x70 pixels, smaller than the crop of 71"):
        Resize(71, "crop").apply(_file(image))


@pytest.mark.parametrize("mode", ["box", "bicubic", "crop"])
def test_any_picture_comes_out_upright_and_in_colour(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = _photograph(60, 40)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    found = _pixels(Resize(40, mode).apply(_file(image, exif=exif))[0])
    assert np.array_equal(found, turned[10:50])
    assert _pixels(Resize(16, mode).apply(_file(image.convert("LA")))[0]).shape == (16, 16, 3)


def test_jpeg_of_a_quality() -> None:
    data = _file(_photograph(64, 64))
    sizes = []
    for quality in (10, 100):
        found, extension = Resize(64, "crop", quality).apply(data)
        assert extension == "jpg"
        error = np.abs(_pixels(found).astype(int) - _pixels(data)).max()
        assert error < {10: 64, 100: 6}[quality]
        sizes.append(len(found))
    assert sizes[0] < sizes[1]


def test_settings_that_are_none() -> None:
    with pytest.raises(ConfigError, match="--resize=0 must be at least 1"):
        Resize(0)
    with pytest.raises(ConfigError, match="--jpeg-quality=101 must be 1 to 100"):
        Resize(8, "box", 101)


def test_decoding_finds_what_a_look_does_not() -> None:
    data = bytearray(_file(_photograph(64, 64)))
    data[len(data) // 2] ^= 0xFF
    assert Treatment().apply(bytes(data), "png")[2].width == 64
    with pytest.raises(UndecodableError):
        Treatment(decode=True).apply(bytes(data), "png")


def test_a_resized_set(class_tree: Path, tmp_path: Path) -> None:
    made = _set(class_tree, tmp_path / "out", Treatment(resize=Resize(8)))
    assert made.source["resized"] == {"size": 8, "mode": "box", "output": "png"}
    assert made.statistics["formats"] == {"PNG": 60} and made.statistics["width"]["largest"] == 8
    # Stored, not compressed: all files are of one size, whatever zlib is installed.
    assert len(set(manifest.index(made)["length"].tolist())) == 1
    with pytest.raises(DataError, match="holds another set"):
        _set(class_tree, tmp_path / "out", Treatment(resize=Resize(8, "bicubic")))
    with pytest.raises(DataError, match="holds another set"):
        _set(class_tree, tmp_path / "out", Treatment())


def test_a_decoded_set(own_class_tree: Path, tmp_path: Path) -> None:
    path = own_class_tree / "ant" / "0001.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert _set(own_class_tree, tmp_path / "looked", Treatment()).num_samples == 12
    made = _set(own_class_tree, tmp_path / "decoded", Treatment(decode=True))
    assert [entry["file"] for entry in made.skipped] == ["ant/0001.png"]


def test_latents_are_kept_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "latents.npy", np.zeros((2, 4, 5, 5), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(2, int))
    with pytest.raises(ConfigError, match="latents are kept as they are"):
        _set(tmp_path, tmp_path / "out", Treatment(resize=Resize(8)))
