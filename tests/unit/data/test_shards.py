import errno
import gzip
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
from PIL import Image

from dist_diffusion.data import images, manifest, shards, sources
from dist_diffusion.data.making import assembly, records
from dist_diffusion.data.making.share import Share
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import ConfigError, DataError, StorageError
from dist_diffusion.storage import files, publish

WriteIdx = Callable[[Path, str, np.ndarray, np.ndarray], None]
REPOSITORY = Path(__file__).parents[3]


def _make(source: Path, out: Path, samples_per_shard: int = 17, seed: int = 0, **options: object) -> Manifest:
    opened = sources.open_source(str(source), **options)  # type: ignore[arg-type]
    made = shards.make(opened, str(out), samples_per_shard, seed, say=lambda _: None)
    assert made is not None
    return made


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
    # Every shard holds what can be used of its four positions; a key is the position.
    assert sum(shard.samples for shard in made.shards) == 10 and len(made.shards) == 3
    keys = [int(name.split(".")[0]) for _, name, *_ in _images_by_tarfile(made)]
    assert [len([key for key in keys if key // 4 == i]) for i in range(3)] == [shard.samples for shard in made.shards]
    assert manifest.load(made.folder) == made
    _make(own_class_tree, tmp_path / "again", samples_per_shard=4)
    assert _content(tmp_path / "again") == _content(made.folder)


def test_a_picture_that_would_fill_memory_is_left_out(own_class_tree: Path, tmp_path: Path) -> None:
    path = own_class_tree / "ant" / "0000.jpg"
    data = bytearray(path.read_bytes())
    begin = data.index(b"\xff\xc0") + 5
    data[begin : begin + 4] = b"\xff\xdc\xff\xdc"
    path.write_bytes(data)
    made = _make(own_class_tree, tmp_path / "out")
    (entry,) = made.skipped
    assert entry["file"] == "ant/0000.jpg" and entry["reason"].startswith("65500x65500 pixels are more than")


def test_a_shard_without_one_good_image_is_no_shard(own_class_tree: Path, tmp_path: Path) -> None:
    whole = _make(own_class_tree, tmp_path / "whole", samples_per_shard=4)
    lost = {data for number, _, _, data, _ in _images_by_tarfile(whole) if number == 1}
    for path in own_class_tree.glob("*/*"):
        if path.read_bytes() in lost:
            path.write_bytes(b"x" * path.stat().st_size)
    made = _make(own_class_tree, tmp_path / "out", samples_per_shard=4)
    assert sorted(_content(made.folder)) == ["index.npy", "manifest.json", "shard-000000.tar", "shard-000002.tar"]
    assert made.shards == (whole.shards[0], whole.shards[2])
    assert len(made.skipped) == 4
    assert manifest.index(manifest.load(made.folder))["shard"].tolist() == [0] * 4 + [1] * 4


def test_a_set_without_one_good_image_is_no_set(own_class_tree: Path, tmp_path: Path) -> None:
    for path in own_class_tree.glob("*/*"):
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"none of the source's images can be used, such as .*/.*: no set was made"):
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


def test_a_mounted_bucket_will_do(class_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no hard links."""

    def link(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", link)
    source = sources.open_source(str(class_tree))
    assert shards.make(source, str(tmp_path / "out"), 17, seed=0, say=lambda _: None).num_samples == 60


def test_a_folder_of_other_things_is_left_alone(class_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not empty"):
        _make(class_tree, tmp_path)
    assert _content(tmp_path) == {"shard-000000.tar": b"precious"}


def test_stopped_before_any_publication_it_goes_on(
    class_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the files that a run publishes, one after the other, and each that it removes."""

    class Stopped(BaseException):
        pass

    _make(class_tree, tmp_path / "undisturbed")
    replace = os.replace
    left = 0

    def stopping(action: Callable[..., None]) -> Callable[..., None]:
        def act(*paths: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped
            action(*paths)

        return act

    stops = 0
    while True:
        out = tmp_path / f"out-{stops}"
        left = stops
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", stopping(replace))
            patched.setattr(publish, "remove", stopping(publish.remove))
            try:
                _make(class_tree, out)
                break
            except Stopped:
                stops += 1
        if not (out / "manifest.json").exists():
            with pytest.raises(DataError, match=r"holds no manifest\.json"):
                manifest.load(str(out))
        made = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
        kept = {path.with_suffix(".tar").name for path in out.glob("shard-*.json")}
        _make(class_tree, out)
        assert _content(out) == _content(tmp_path / "undisturbed")
        assert all((out / name).stat().st_mtime_ns == made[name] for name in kept)
    # Four shards and their records, index and manifest; four records and the mark are removed.
    assert stops == 4 * 2 + 2 + 4 + 1


def test_a_finished_shard_that_was_changed_is_made_again(
    class_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(class_tree, tmp_path / "undisturbed")
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(assembly, "write_index", lambda *_: files.read_bytes(str(tmp_path / "absent")))
        _make(class_tree, tmp_path / "out")
    path = tmp_path / "out" / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    (tmp_path / "out" / "shard-000002.tar").unlink()
    said: list[str] = []
    shards.make(sources.open_source(str(class_tree)), str(tmp_path / "out"), 17, seed=0, say=said.append)
    assert _content(tmp_path / "out") == _content(tmp_path / "undisturbed")
    assert [line for line in said if "made again" in line] == [
        "shard-000001.tar was not what its record says: made again",
        "shard-000002.tar was not what its record says: made again",
    ]


@pytest.mark.parametrize("options", [{"seed": 1}, {"samples_per_shard": 16}, {"class_names": ["a", "b", "c"]}])
def test_an_unfinished_set_of_other_settings_is_left_alone(class_tree: Path, tmp_path: Path, options: dict) -> None:
    source = sources.open_source(str(class_tree))
    assert shards.make(source, str(tmp_path), 17, seed=0, say=lambda _: None, share=Share(1, 4)) is None
    before = _content(tmp_path)
    with pytest.raises(DataError, match="holds an unfinished set of another source or other settings: begun from"):
        _make(class_tree, tmp_path, **options)
    assert _content(tmp_path) == before


def test_shares_make_one_set_without_a_word(class_tree: Path, tmp_path: Path) -> None:
    """In any order, some twice, some before others have begun; 12 shards among 5."""
    _make(class_tree, tmp_path / "alone", samples_per_shard=5)
    source = sources.open_source(str(class_tree))
    said: list[str] = []
    results = [
        shards.make(source, str(tmp_path / "out"), 5, seed=0, say=said.append, share=Share(index, 5))
        for index in (3, 0, 0, 4, 1, 2, 3)
    ]
    assert results[:5] == [None] * 5
    assert results[5] == results[6] == manifest.load(str(tmp_path / "out"))
    assert _content(tmp_path / "out") == _content(tmp_path / "alone")
    assert [line.split(" shards")[0] for line in said if "is done" in line] == [
        "share 4 of 5 is done; 10 of 12",
        "share 1 of 5 is done; 7 of 12",
        "share 1 of 5 is done; 7 of 12",
        "share 5 of 5 is done; 5 of 12",
        "share 2 of 5 is done; 2 of 12",
    ]


def test_more_shares_than_shards(class_tree: Path, tmp_path: Path) -> None:
    source = sources.open_source(str(class_tree))
    found = [
        shards.make(source, str(tmp_path / "out"), 50, seed=0, say=lambda _: None, share=Share(index, 3))
        for index in (2, 1, 0)
    ]
    assert found[0] is None and found[1] is None and found[2] is not None


def test_whoever_comes_last_finds_the_set_finished(
    class_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process puts the set together, and removes the records, while this one is about to."""
    out = str(tmp_path / "out")
    source = sources.open_source(str(class_tree))
    load = records.load

    def late(folder: str, number: int) -> records.Record:
        with monkeypatch.context() as patched:
            patched.setattr(records, "load", load)
            shards.make(source, out, 17, seed=0, say=lambda _: None)
        return load(folder, number)

    monkeypatch.setattr(records, "load", late)
    made = shards.make(source, out, 17, seed=0, say=lambda _: None)
    assert made == manifest.load(out)
    assert sorted(_content(out)) == ["index.npy", "manifest.json", *(f"shard-{i:06d}.tar" for i in range(4))]


def test_workers_make_the_same_bytes(own_class_tree: Path, tmp_path: Path) -> None:
    (own_class_tree / "ant" / "0000.jpg").write_bytes(b"bad")
    _make(own_class_tree, tmp_path / "alone", samples_per_shard=2)
    source = sources.open_source(str(own_class_tree))
    shards.make(source, str(tmp_path / "out"), 2, seed=0, say=lambda _: None, workers=3)
    assert _content(tmp_path / "out") == _content(tmp_path / "alone")


def test_what_a_worker_imports_is_light() -> None:
    """It starts in a fifth of a second because of this; torch alone takes one."""
    program = (
        "import sys, dist_diffusion.data.making.writing, dist_diffusion.data.making.contents;"
        "sys.exit(str([m for m in ('torch', 'webdataset', 'blobfile', 'obstore') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_many_files_left_out_are_not_all_said(own_class_tree: Path, tmp_path: Path) -> None:
    for i in range(150):
        (own_class_tree / "bee" / f"x{i}.png").write_bytes(b"bad")
    said: list[str] = []
    made = shards.make(sources.open_source(str(own_class_tree)), str(tmp_path / "out"), 50, seed=0, say=said.append)
    assert made is not None and len(made.skipped) == 150
    assert len([line for line in said if line.startswith("left out")]) == 100
    assert "more than 100 files are left out: manifest.json will list all" in said


def test_statistics(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "tree" / "a" / "0.jpg", exif=exif)
    Image.new("L", (10, 40)).save(tmp_path / "tree" / "a" / "1.png")
    Image.new("P", (11, 60)).save(tmp_path / "tree" / "a" / "2.gif")
    (tmp_path / "tree" / "a" / "3.gif").write_bytes(b"bad")
    made = _make(tmp_path / "tree", tmp_path / "out", samples_per_shard=1)
    assert made.statistics == {
        "images": 3,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "tree" / "a").glob("[0-2].*")),
        "width": {"smallest": 10, "largest": 30, "mean": 17.0},
        "height": {"smallest": 20, "largest": 60, "mean": 40.0},
        "formats": {"GIF": 1, "JPEG": 1, "PNG": 1},
        "modes": {"L": 1, "P": 1, "RGB": 1},
        "exif_rotated": 1,
    }


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
