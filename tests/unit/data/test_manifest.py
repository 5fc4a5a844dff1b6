import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.data import manifest
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import DataError


def _change(made: Manifest, change: Callable[[dict], object]) -> None:
    path = Path(made.folder, "manifest.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_folder_and_file_are_the_same_set(made: Manifest) -> None:
    assert manifest.load(made.folder) == made
    assert manifest.load(f"{made.folder}/manifest.json") == made
    assert made.num_samples == 60
    assert [shard.samples for shard in made.shards] == [17, 17, 17, 9]
    assert made.classes == ("ant", "bee", "cat")
    assert made.class_counts == (20, 20, 20)


def test_a_manifest_of_an_earlier_version(made: Manifest) -> None:
    _change(made, lambda content: (content.pop("kind"), content.pop("statistics")))
    assert manifest.load(made.folder) == dataclasses.replace(made, statistics={})
    assert made.statistics["images"] == 60


def test_checksum_is_of_the_data_not_of_the_place(made: Manifest, tmp_path: Path) -> None:
    copy = manifest.load(shutil.copytree(made.folder, tmp_path / "elsewhere").as_posix())
    assert copy.checksum == made.checksum
    assert dataclasses.replace(made, shards=made.shards[::-1]).checksum == made.checksum
    other = dataclasses.replace(made.shards[0], sha256=made.shards[1].sha256)
    assert dataclasses.replace(made, shards=(other, *made.shards[1:])).checksum != made.checksum
    renamed = dataclasses.replace(made.shards[0], name="other.tar")
    assert dataclasses.replace(made, shards=(renamed, *made.shards[1:])).checksum != made.checksum


def test_index_has_a_row_a_sample_in_shard_order(made: Manifest) -> None:
    rows = manifest.index(made)
    assert rows.dtype == manifest.INDEX_DTYPE
    assert np.bincount(rows["shard"]).tolist() == [17, 17, 17, 9]
    assert (np.diff(rows["shard"].astype(int)) >= 0).all()
    assert np.bincount(rows["label"]).tolist() == [20, 20, 20]


def test_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard folder .*/absent does not exist.*tools/make_shards\.py"):
        manifest.load(str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"manifest .*/absent\.json does not exist.*tools/make_shards\.py"):
        manifest.load(str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match=r"is empty.*tools/make_shards\.py"):
        manifest.load(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no manifest\.json.*tools/make_shards\.py"):
        manifest.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("classes"), "the key 'classes' is missing"),
        (lambda content: content["shards"][2].pop("sha256"), "the key 'sha256' is missing"),
        (lambda content: content.update(format=2), "is of format 2; this version reads format 1"),
        (
            lambda content: content.update(kind="sounds"),
            "is of the kind 'sounds'; this version reads images and latents",
        ),
        (lambda content: content.update(shards=3), "is malformed"),
        (lambda content: content["shards"][0].update(samples="many"), "is malformed"),
        (lambda content: content["shards"][0].update(sha256="xyz"), "is malformed"),
        (lambda content: content["shards"][0].update(name="../outside.tar"), "'../outside.tar' is not the name"),
        (lambda content: content["index"].update(file="/etc/passwd"), "'/etc/passwd' is not the name"),
    ],
)
def test_malformed_manifest(made: Manifest, change: Callable[[dict], object], message: str) -> None:
    _change(made, change)
    with pytest.raises(DataError, match=message) as caught:
        manifest.load(made.folder)
    assert f"{made.folder}/manifest.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_manifest_that_is_no_json_object(made: Manifest, content: bytes) -> None:
    Path(made.folder, "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json is malformed"):
        manifest.load(made.folder)


def test_shards_that_the_manifest_does_not_describe(made: Manifest) -> None:
    shard = Path(made.folder, made.shards[1].name)
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match=f"{made.shards[1].name} has {len(content) - 512} bytes.*says {len(content)}"):
        manifest.load(made.folder)
    shard.unlink()
    with pytest.raises(DataError, match=f"{made.shards[1].name} is missing"):
        manifest.load(made.folder)


def test_index_of_another_length(made: Manifest) -> None:
    path = Path(made.folder, "index.npy")
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"index\.npy has 59 rows.*hold 60 samples"):
        manifest.index(made)


def test_index_with_another_label(made: Manifest) -> None:
    path = Path(made.folder, "index.npy")
    rows = np.load(path)
    rows["label"][30] ^= 1
    np.save(path, rows)
    with pytest.raises(DataError, match=r"index\.npy is not the file that manifest\.json describes"):
        manifest.index(made)


def test_index_damaged_or_missing(made: Manifest) -> None:
    path = Path(made.folder, "index.npy")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"index\.npy is damaged"):
        manifest.index(made)
    path.unlink()
    with pytest.raises(DataError, match=r"index\.npy is missing"):
        manifest.index(made)
