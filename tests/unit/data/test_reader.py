import tarfile
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.data import manifest
from dist_diffusion.data.manifest import Manifest, Shard
from dist_diffusion.data.reader import Reader
from dist_diffusion.errors import DataError, StorageError


def test_reads_every_original(made: Manifest, class_tree: Path) -> None:
    rows = manifest.index(made)
    reader = Reader(made, rows)
    found = sorted((int(rows["label"][row]), reader.image_bytes(row)) for row in range(made.num_samples))
    labels = {name: label for label, name in enumerate(made.classes)}
    assert found == sorted((labels[path.parent.name], path.read_bytes()) for path in class_tree.glob("*/*"))


def test_locates_a_row_in_its_shard(made: Manifest) -> None:
    reader = Reader(made, manifest.index(made))
    assert reader.locate(0) == (made.shards[0], 0)
    assert reader.locate(16) == (made.shards[0], 16)
    assert reader.locate(17) == (made.shards[1], 0)
    assert reader.locate(59) == (made.shards[3], 8)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"0001.png", "0001"),
        (b"0001.left.png", "0001"),
        (b"deep/a.b/0001.left.png", "deep/a.b/0001"),
        (b"caf\xe9.png", "caf\\xe9"),  # can be printed
    ],
)
def test_the_key_is_webdatasets(tmp_path: Path, name: bytes, key: str) -> None:
    member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(tarfile.BLOCKSIZE * 2))
    rows = np.array([(0, tarfile.BLOCKSIZE, 4, 0, 0)], dtype=manifest.INDEX_DTYPE)
    shard = Shard("a.tar", 1, 3 * tarfile.BLOCKSIZE, "00")
    reader = Reader(Manifest(str(tmp_path), (shard,), ("one",), (1,), {}, "index.npy", ""), rows)
    assert reader.key(0) == key


def test_one_flipped_bit_is_named(made: Manifest) -> None:
    rows = manifest.index(made)
    row = 20
    path = Path(made.folder, made.shards[1].name)
    content = bytearray(path.read_bytes())
    offset = int(rows["offset"][row])
    content[offset + 5] ^= 1
    path.write_bytes(content)
    reader = Reader(made, rows)
    with pytest.raises(DataError, match=rf"sample 3 of shard {path} \(byte {offset}\) is damaged"):
        reader.image_bytes(row)
    assert reader.image_bytes(row + 1)


def test_a_shard_cut_short_or_gone_after_the_start(made: Manifest) -> None:
    path = Path(made.folder, made.shards[3].name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"sample 8 of shard {path}"):
        Reader(made, manifest.index(made)).image_bytes(59)
    path.unlink()
    with pytest.raises(StorageError, match=f"cannot read shard {path}"):
        Reader(made, manifest.index(made)).image_bytes(59)


def test_more_shards_than_files_that_may_be_open(made: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_diffusion.data.shard_files.MAX_OPEN_SHARDS", 2)
    rows = manifest.index(made)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = Reader(made, rows)
    for row in [*range(0, 60, 5), *range(55, 0, -7)]:
        reader.image_bytes(row)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
