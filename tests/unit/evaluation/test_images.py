import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.evaluation.images import open_images


def _all(source, batch_size: int) -> np.ndarray:
    batches = list(source.batches(batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1]) and len(batches[-1]) <= batch_size
    return np.concatenate(batches)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch_size", [3, 10, 64])
def test_npz(tmp_path, save, batch_size):
    images = np.random.default_rng(0).integers(0, 256, size=(10, 8, 8, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", images, np.arange(10))
    source = open_images(str(tmp_path / "a.npz"))
    assert (source.num_images, source.image_size) == (10, 8)
    assert source.labels.dtype == np.int64 and source.labels.tolist() == list(range(10))
    for _ in range(2):
        np.testing.assert_array_equal(_all(source, batch_size), images)


def test_npz_without_labels(write_npz):
    assert open_images(write_npz("a.npz", 5)).labels is None


def test_a_sample_job_is_its_largest_merged_npz(tmp_path, write_npz):
    (tmp_path / "job.json").write_text(json.dumps({}))
    (tmp_path / "samples").mkdir()
    with pytest.raises(DataError, match="not finished"):
        open_images(str(tmp_path))
    write_npz("samples_9x16x16x3.npz", 9)
    largest = write_npz("samples_10x16x16x3.npz", 10)
    source = open_images(str(tmp_path))
    assert (source.path, source.num_images) == (largest, 10)


def test_shards_are_read_in_the_order_of_their_index(shard_folder):
    source = open_images(shard_folder, image_size=12)
    images = _all(source, 7)
    assert images.shape == (30, 12, 12, 3) and images.dtype == np.uint8
    assert np.bincount(source.labels).tolist() == [15, 15] and len(set(source.labels[:15])) == 2
    first = open_images(f"{shard_folder}/manifest.json", image_size=12, limit=11)
    np.testing.assert_array_equal(_all(first, 4), images[:11])
    assert first.labels.tolist() == source.labels[:11].tolist() and first.checksum() == source.checksum()
    assert open_images(shard_folder, image_size=12, limit=500).num_images == 30


def test_shards_at_their_own_size_are_the_originals(shard_folder):
    index = np.load(Path(shard_folder) / "index.npy")
    shard, offset, length = index[20][["shard", "offset", "length"]].item()
    tar = sorted(Path(shard_folder).glob("*.tar"))[shard].read_bytes()
    original = np.asarray(Image.open(io.BytesIO(tar[offset : offset + length])))
    np.testing.assert_array_equal(_all(open_images(shard_folder, image_size=24), 8)[20], original)


def test_shards_without_a_size_are_an_error(shard_folder):
    with pytest.raises(ConfigError, match="image_size=N"):
        open_images(shard_folder)


def test_a_folder_that_is_neither_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no manifest.json|is empty"):
        open_images(str(tmp_path), image_size=8)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        open_images(str(tmp_path / "none.npz"))


def test_a_file_that_is_no_npz_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"a\.npz is not an npz"):
        open_images(str(tmp_path / "a.npz"))


def test_a_file_cut_short_is_named(tmp_path, write_npz):
    content = Path(write_npz("a.npz", 10)).read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"a\.npz is cut short"):
        open_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8, 3), dtype=np.float32), "float32"),
        (np.zeros((4, 8, 8, 1), dtype=np.uint8), r"\(4, 8, 8, 1\)"),
        (np.zeros((4, 3, 8, 8), dtype=np.uint8), r"\(4, 3, 8, 8\)"),
        (np.zeros((3, 8, 8, 4), dtype=np.uint8).T[..., :3], "C order"),
        (np.array([{}]), "object"),
    ],
)
def test_other_arrays_than_images_are_refused(tmp_path, images, message):
    np.savez(tmp_path / "a.npz", images)
    with pytest.raises(DataError, match=rf"a\.npz: arr_0 is .*{message}"):
        open_images(str(tmp_path / "a.npz"))


def test_an_npz_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(DataError, match="holds mu, sigma, but no images"):
        open_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("labels", [np.arange(5), np.zeros(6), np.zeros((6, 10), dtype=np.int64)])
def test_labels_that_are_not_one_integer_an_image_are_refused(write_npz, labels):
    with pytest.raises(DataError, match="not 6 integer labels"):
        open_images(write_npz("a.npz", 6, labels=labels))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("position", [500, -3000])
def test_a_flipped_byte_is_found(tmp_path, save, position):
    path = tmp_path / "a.npz"
    save(path, np.random.default_rng(0).integers(0, 256, size=(10, 64, 64, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    source = open_images(str(path))
    with pytest.raises(DataError, match=r"a\.npz: arr_0 is damaged"):
        list(source.batches(4))
