import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dist_diffusion.data import images, manifest, shards, sources
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import ConfigError, DataError

WriteIdx = Callable[[Path, str, np.ndarray, np.ndarray], None]
REPOSITORY = Path(__file__).parents[3]


def _make(source: Path, out: Path, samples_per_shard: int = 17, seed: int = 0, **options: object) -> Manifest:
    opened = sources.open_source(str(source), **options)  # type: ignore[arg-type]
    return shards.make(opened, str(out), samples_per_shard, seed, say=lambda _: None)


def _content(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _images_by_tarfile(made: Manifest) -> list[tuple[int, str, int, bytes, int]]:
    """(shard, member name, offset, bytes, label) of every image in the order of the tars."""
    found = []
    for number, shard in enumerate(made.shards):
        with tarfile.open(Path(made.folder, shard.name)) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        for (label_member, label), (image_member, data) in zip(members[::2], members[1::2], strict=True):
            assert label_member.name == image_member.name.split(".")[0] + ".cls"
            found.append((number, image_member.name, image_member.offset_data, data, int(label)))
    return found


def test_one_source_one_set_of_bytes(class_tree: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(class_tree, tmp_path / "moved"))
    os.utime(next((moved / "ant").iterdir()), (1, 1))
    _make(class_tree, tmp_path / "a")
    _make(moved, tmp_path / "b")
    content = _content(tmp_path / "a")
    assert sorted(content) == ["index.npy", "manifest.json", *(f"shard-{i:06d}.tar" for i in range(4))]
    assert _content(tmp_path / "b") == content
    _make(class_tree, tmp_path / "c", seed=1)
    assert _content(tmp_path / "c")["shard-000000.tar"] != content["shard-000000.tar"]


def test_index_says_where_tarfile_finds_the_images(made: Manifest) -> None:
    rows = manifest.index(made)
    found = _images_by_tarfile(made)
    assert [(number, offset, len(data), label, zlib.crc32(data)) for number, _, offset, data, label in found] == [
        row.item() for row in rows
    ]
    assert [name.split(".")[0] for _, name, *_ in found] == [f"{i:02d}" for i in range(60)]


def test_originals_are_kept_byte_for_byte_and_shuffled(made: Manifest, class_tree: Path) -> None:
    labels = {name: label for label, name in enumerate(made.classes)}
    originals = sorted((labels[path.parent.name], path.read_bytes()) for path in class_tree.glob("*/*"))
    found = [(label, data) for *_, data, label in _images_by_tarfile(made)]
    assert sorted(found) == originals
    assert found != originals
    assert all(len({label for number, *_, label in _images_by_tarfile(made) if number == i}) == 3 for i in range(4))


def test_manifest_describes_the_files(made: Manifest) -> None:
    for shard in made.shards:
        path = Path(made.folder, shard.name)
        assert (path.stat().st_size, manifest.files.sha256(str(path))) == (shard.bytes, shard.sha256)


def test_tars_hold_nothing_of_this_machine(made: Manifest) -> None:
    for shard in made.shards:
        with tarfile.open(Path(made.folder, shard.name)) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o444)}


def test_webdataset_reads_them(made: Manifest) -> None:
    urls = [str(Path(made.folder, shard.name)) for shard in made.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:02d}" for i in range(60)]
    assert [int(sample["cls"]) for sample in samples] == manifest.index(made)["label"].tolist()


def test_what_cannot_be_used_is_listed_and_said(own_class_tree: Path, tmp_path: Path) -> None:
    (own_class_tree / "ant" / "0000.jpg").write_bytes(b"")
    whole = (own_class_tree / "bee" / "0001.png").read_bytes()
    (own_class_tree / "bee" / "0001.png").write_bytes(whole[: len(whole) // 2])
    (own_class_tree / "cat" / "notes.txt").touch()
    (own_class_tree / "readme").touch()
    (own_class_tree / "dog").mkdir()
    said: list[str] = []
    made = shards.make(sources.open_source(str(own_class_tree)), str(tmp_path / "out"), 4, seed=0, say=said.append)
    assert {entry["file"] for entry in made.skipped} == {"ant/0000.jpg", "bee/0001.png", "cat/notes.txt", "readme"}
    assert all(entry["reason"] for entry in made.skipped)
    assert all(any(entry["file"] in line for line in said) for entry in made.skipped)
    assert "class dog has no images" in said
    assert made.class_counts == (3, 3, 4, 0)
    assert [shard.samples for shard in made.shards] == [4, 4, 2]
    assert manifest.load(made.folder) == made
    _make(own_class_tree, tmp_path / "again", samples_per_shard=4)
    assert _content(tmp_path / "again") == _content(made.folder)


def test_a_set_without_one_good_image_is_no_set(own_class_tree: Path, tmp_path: Path) -> None:
    for path in own_class_tree.glob("*/*"):
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="none of the source's images can be decoded"):
        _make(own_class_tree, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_same_set_is_not_made_twice(made: Manifest, class_tree: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(made.folder).iterdir()}
    said: list[str] = []
    again = shards.make(sources.open_source(str(class_tree)), made.folder, 17, seed=0, say=said.append)
    assert again == made
    assert len(said) == 1 and "already holds this set" in said[0]
    assert {path: path.stat().st_mtime_ns for path in Path(made.folder).iterdir()} == before


@pytest.mark.parametrize("options", [{"seed": 1}, {"samples_per_shard": 16}, {"class_names": ["a", "b", "c"]}])
def test_another_set_is_not_overwritten(made: Manifest, class_tree: Path, options: dict) -> None:
    before = _content(made.folder)
    with pytest.raises(DataError, match="holds another set"):
        _make(class_tree, Path(made.folder), **options)
    assert _content(made.folder) == before


def test_a_changed_source_is_another_set(made: Manifest, class_tree: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(class_tree, tmp_path / "changed"))
    (changed / "ant" / "0000.jpg").rename(changed / "bee" / "9999.jpg")
    with pytest.raises(DataError, match="holds another set"):
        _make(changed, Path(made.folder))


def test_a_folder_of_other_things_is_left_alone(class_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not empty"):
        _make(class_tree, tmp_path)
    assert _content(tmp_path) == {"shard-000000.tar": b"precious"}


def test_a_stopped_run_is_started_again(class_tree: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop_at_third_shard(text: str) -> None:
        if text.startswith("shard-000002"):
            raise Stopped

    out = str(tmp_path / "out")
    with pytest.raises(Stopped):
        shards.make(sources.open_source(str(class_tree)), out, 5, seed=0, say=stop_at_third_shard)
    assert "shard-000002.tar" in _content(out) and "manifest.json" not in _content(out)
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        manifest.load(out)
    _make(class_tree, tmp_path / "out")
    _make(class_tree, tmp_path / "undisturbed")
    assert _content(out) == _content(tmp_path / "undisturbed")


def test_idx_files_plain_and_gzipped(
    tmp_path: Path, write_idx: WriteIdx, idx_arrays: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = idx_arrays
    write_idx(tmp_path / "plain", "train", pixels, labels)
    (tmp_path / "gz").mkdir()
    for path in (tmp_path / "plain").iterdir():
        (tmp_path / "gz" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    made = _make(tmp_path / "plain", tmp_path / "out")
    _make(tmp_path / "gz", tmp_path / "out-gz", split="train")
    assert _content(tmp_path / "out-gz") == _content(tmp_path / "out")
    assert made.classes == ("0", "1", "2", "3")
    found = [
        (np.asarray(images.decode(data))[:, :, 0].tobytes(), label) for *_, data, label in _images_by_tarfile(made)
    ]
    assert sorted(found) == sorted(zip([image.tobytes() for image in pixels], labels.tolist(), strict=True))
    # Another value means that one source no longer makes one set of bytes, whatever was installed.
    assert made.checksum == "93a17e837bc43ae6807f778ae98b20b661a0c04728e03289f02559e0d2464038"


def test_idx_split_and_class_names(
    tmp_path: Path, write_idx: WriteIdx, idx_arrays: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = idx_arrays
    write_idx(tmp_path / "idx", "train", pixels, labels)
    write_idx(tmp_path / "idx", "t10k", pixels[:12], labels[:12])
    names = ["shirt", "shoe", "bag", "coat", "hat"]
    made = _make(tmp_path / "idx", tmp_path / "out", split="test", class_names=names)
    assert made.num_samples == 12
    assert made.classes == tuple(names)
    assert made.class_counts == (3, 3, 3, 3, 0)
    with pytest.raises(ConfigError, match="--classes names 2 classes"):
        _make(tmp_path / "idx", tmp_path / "other", class_names=names[:2])


def test_idx_files_that_are_missing_or_damaged(
    tmp_path: Path, write_idx: WriteIdx, idx_arrays: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = idx_arrays
    folder, out = tmp_path / "idx", tmp_path / "out"
    write_idx(folder, "train", pixels, labels)
    with pytest.raises(DataError, match=r"neither .*/t10k-images-idx3-ubyte nor .*t10k-images-idx3-ubyte\.gz exists"):
        _make(folder, out, split="test")
    write_idx(folder, "train", pixels, labels[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte holds 50 images, .*labels-idx1-ubyte 49 labels"):
        _make(folder, out)
    path = folder / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], r"train-images-idx3-ubyte is damaged: its header says \[50, 7, 5\], but 1749 values follow"),
        (whole[:3], "train-images-idx3-ubyte is damaged"),
        (b"\0\0\x0d\x03" + whole[4:], r"no IDX file of uint8 values in 3 dimensions \(magic 0x00000d03\)"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            _make(folder, out)
    path.unlink()
    Path(f"{path}.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        _make(folder, out)
    assert not out.exists()


def test_sources_that_are_none(class_tree: Path, own_class_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source folder .*/absent does not exist"):
        sources.open_source(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="holds no images"):
        sources.open_source(str(own_class_tree / "ant"))
    with pytest.raises(DataError, match=r"class folder .*/tree holds a folder \(ant\)"):
        sources.open_source(str(tmp_path))
    with pytest.raises(ConfigError, match="--split"):
        sources.open_source(str(class_tree), split="train")
    with pytest.raises(ConfigError, match=r"--classes names 2 classes, but .* has 3"):
        sources.open_source(str(class_tree), class_names=["a", "b"])


def _tool(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/make_shards.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_tool_makes_a_set_that_loads(class_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Ant\nBee\nCat\n")
    done = _tool(class_tree, tmp_path / "out", "--samples-per-shard", "50", "--classes", tmp_path / "names.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "60 of 60 images" in done.stdout
    made = manifest.load(str(tmp_path / "out"))
    assert made.classes == ("Ant", "Bee", "Cat")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == made.to_json()


def test_the_tool_ends_with_one_message(tmp_path: Path) -> None:
    done = _tool(tmp_path / "absent", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: source folder {tmp_path}/absent does not exist\n"
