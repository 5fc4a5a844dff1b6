"""npz files: readable by numpy, the same bytes every time, whole or not there."""

from pathlib import Path

import numpy as np

from dist_diffusion.sampling.noise import ImageNoise
from dist_diffusion.sampling.npz import Streamed, is_whole, publish_npz


def test_streamed_pieces_are_one_array(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    paths = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    for path, cut in zip(paths, (3, 7), strict=True):
        publish_npz(path, {"arr_0": Streamed(images.shape, images.dtype, [images[:cut], images[cut:]])})
    assert np.array_equal(np.load(paths[0])["arr_0"], images)
    assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()


def test_a_damaged_file_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert not is_whole(str(path), 1000)
    publish_npz(str(path), {"arr_0": Streamed((1000,), np.dtype(np.int64), [np.arange(1000)])})
    assert is_whole(str(path), 1000)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert not is_whole(str(path), 1000)
    assert not is_whole(str(path), 999)
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert not is_whole(str(path), 1000) or np.array_equal(np.load(path)["arr_0"], np.arange(1000))


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    together = ImageNoise(3, "n", [4, 5, 6], (3, 2, 2), "cpu")
    alone = ImageNoise(3, "n", [5], (3, 2, 2), "cpu")
    for _ in range(3):
        assert np.array_equal(together()[1], alone()[0])
