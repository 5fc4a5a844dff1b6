import csv
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dist_diffusion.data import manifest, png, shards, sources
from dist_diffusion.data.making.listing import NO_LABEL_INSIDE
from dist_diffusion.data.making.source import Source
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import ConfigError, DataError

CLASSES = ("ant", "bee", "cat")


def _make(source: Source, out: Path) -> Manifest:
    made = shards.make(source, str(out), 17, seed=0, say=lambda _: None)
    assert made is not None
    return made


def _checksum(source: Path, out: Path, **options: object) -> str:
    return _make(sources.open_source(str(source), **options), out).checksum  # type: ignore[arg-type]


def _files(tree: Path) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()}


def _tar(content: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _tar_of_tars(tree: Path) -> bytes:
    content = {}
    for folder in sorted(tree.iterdir(), reverse=True):
        content[f"{folder.name}.tar"] = _tar({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    return _tar(content)


def _zip(path: Path, content: Mapping[str, bytes], compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr("folder/", b"")
    return path


def _webdataset(folder: Path, samples: list[dict[str, object]], per_tar: int = 8) -> Path:
    folder.mkdir()
    for number in range(0, len(samples), per_tar):
        with webdataset.TarWriter(str(folder / f"s-{number:03d}.tar"), encoder=False) as tar:
            for sample in samples[number : number + per_tar]:
                tar.write(sample)
    return folder


def _left_out(source: Source) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in source.unusable}


@pytest.fixture(scope="module")
def expected(class_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of the set that the class folders make."""
    return _checksum(class_tree, tmp_path_factory.mktemp("expected") / "out")


def test_imagenets_tar_of_tars_is_the_tree_that_it_unpacks_to(class_tree: Path, tmp_path: Path, expected: str) -> None:
    (tmp_path / "train.tar").write_bytes(_tar_of_tars(class_tree))
    assert _checksum(tmp_path / "train.tar", tmp_path / "out") == expected
    assert not any(path.name in CLASSES for path in tmp_path.rglob("*"))


def test_a_tar_of_class_folders_below_others(class_tree: Path, tmp_path: Path, expected: str) -> None:
    content = {f"./data/train/{name}": data for name, data in reversed(_files(class_tree).items())}
    (tmp_path / "train.tar").write_bytes(_tar(content))
    assert _checksum(tmp_path / "train.tar", tmp_path / "out") == expected


@pytest.mark.parametrize("prefix", ["", "train/", "a/b/c/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip(class_tree: Path, tmp_path: Path, expected: str, prefix: str, compression: int) -> None:
    content = {f"{prefix}{name}": data for name, data in reversed(_files(class_tree).items())}
    assert _checksum(_zip(tmp_path / "train.zip", content, compression), tmp_path / "out") == expected


def test_tars_beside_the_folders_that_they_unpacked_to(class_tree: Path, tmp_path: Path, expected: str) -> None:
    tree = Path(shutil.copytree(class_tree, tmp_path / "tree"))
    (tree / "ant.tar").write_bytes(_tar({"0.jpg": b"x"}))
    source = sources.open_source(str(tree))
    assert _left_out(source) == {"ant.tar": "not in a class folder"}
    assert _make(source, tmp_path / "out").checksum == expected


def test_class_folders_without_an_image_are_classes_in_archives_too(own_class_tree: Path, tmp_path: Path) -> None:
    (own_class_tree / "aardvark").mkdir()
    (own_class_tree / "bat").mkdir()
    (own_class_tree / "bat" / "notes.txt").write_text("none yet")
    shutil.make_archive(str(tmp_path / "a"), "zip", own_class_tree.parent, own_class_tree.name)
    shutil.make_archive(str(tmp_path / "b"), "tar", own_class_tree)
    (tmp_path / "c.tar").write_bytes(_tar_of_tars(own_class_tree))
    for path in (own_class_tree, tmp_path / "a.zip", tmp_path / "b.tar", tmp_path / "c.tar"):
        assert sources.open_source(str(path)).classes == ("aardvark", "ant", "bat", "bee", "cat")


def test_a_tar_of_tars_of_several_classes(tmp_path: Path) -> None:
    (tmp_path / "all.tar").write_bytes(_tar({"train.tar": _tar({"ant/0.png": b"x", "bee/0.png": b"y"})}))
    message = r"all\.tar holds train\.tar with several folders in it \(such as ant, bee\).*take train\.tar out"
    with pytest.raises(DataError, match=message):
        sources.open_source(str(tmp_path / "all.tar"))


def test_a_zip_behind_another_file(class_tree: Path, tmp_path: Path, expected: str) -> None:
    path = _zip(tmp_path / "train.zip", _files(class_tree), zipfile.ZIP_DEFLATED)
    path.write_bytes(b"a program that unpacks itself" + path.read_bytes())
    assert _checksum(path, tmp_path / "out") == expected


def test_a_set_of_ours_is_a_source(made: Manifest, tmp_path: Path) -> None:
    Path(made.folder, "stray.tar").write_bytes(b"not in the manifest")
    source = sources.open_source(made.folder)
    assert (source.kind, source.classes, len(source)) == ("images", CLASSES, 60)
    again = _make(source, tmp_path / "again")
    assert sorted(manifest.index(again)["crc32"]) == sorted(manifest.index(made)["crc32"])
    assert again.class_counts == made.class_counts


@pytest.mark.parametrize("where", ["cls", "label", "class"])
@pytest.mark.parametrize("named", [False, True])
def test_a_webdataset_of_others(class_tree: Path, tmp_path: Path, where: str, named: bool) -> None:
    samples: list[dict[str, object]] = []
    for name, data in _files(class_tree).items():
        folder, _, file = name.partition("/")
        label = folder if named else CLASSES.index(folder)
        text = str(label).encode() if where == "cls" else json.dumps({"width": 3, where: label}).encode()
        key, _, extension = file.partition(".")
        samples.append({"__key__": f"{folder}/{key}", extension: data, "cls" if where == "cls" else "json": text})
    made = _make(sources.open_source(str(_webdataset(tmp_path / "wds", samples))), tmp_path / "out")
    assert made.classes == (CLASSES if named else ("0", "1", "2"))
    assert made.class_counts == (20, 20, 20)
    assert made.source["kind"] == "webdataset"


def test_a_webdataset_with_labels_from_a_map_or_its_names(class_tree: Path, tmp_path: Path) -> None:
    content = {name.replace("/", "_"): data for name, data in _files(class_tree).items()}
    samples = [{"__key__": name.partition(".")[0], name.partition(".")[2]: data} for name, data in content.items()]
    folder = _webdataset(tmp_path / "wds", samples)
    (tmp_path / "labels.json").write_text(json.dumps({name.replace("JPEG", "jpeg"): 1 for name in list(content)[:7]}))
    with pytest.raises(DataError, match=r"wds holds no images \(s-000\.tar/ant_0000\.jpg: has no label: neither"):
        sources.open_source(str(folder))
    assert sources.open_source(str(folder), labels_from="prefix").classes == CLASSES
    source = sources.open_source(str(folder), labels_from=str(tmp_path / "labels.json"))
    assert len(source) == 5
    assert _left_out(source)["ant_0002.jpeg"] == f"has a label in {tmp_path}/labels.json, but there is no such image"
    assert _left_out(source)["s-000.tar/ant_0002.JPEG"] == f"has no label in {tmp_path}/labels.json"


def test_a_webdataset_by_brace_notation(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i:03d}", "png": png.encode(np.full((2, 2), i, np.uint8)), "cls": b"0"} for i in range(24)]
    folder = _webdataset(tmp_path / "wds", samples)
    source = sources.open_source(f"{folder}/s-{{000,008}}.tar")
    assert [source[i].name for i in (0, 8, 15)] == ["s-000.tar/000.png", "s-008.tar/008.png", "s-008.tar/015.png"]
    assert len(source) == 16
    (tmp_path / "wds2").mkdir()
    (folder / "s-016.tar").rename(tmp_path / "wds2" / "s-016.tar")
    source = sources.open_source(f"{tmp_path}/{{wds/s-000,wds2/s-016}}.tar")
    assert [source[i].name for i in (0, 8)] == ["wds/s-000.tar/000.png", "wds2/s-016.tar/016.png"]
    assert source[8].place.read() == samples[16]["png"]
    with pytest.raises(DataError, match=r"3 of 3 tars do not exist, such as .*/s-016\.tar"):
        sources.open_source(f"{folder}/s-{{016..018}}.tar")


def test_a_webdatasets_odd_members_are_named_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "wds"
    folder.mkdir()
    content = {"0.cls": b"1", "0.jpg": b"j", "1.cls": b"", "1.jpg": b"j", "2.cls": b"1", "3.jpg": b"", "3.png": b""}
    data = _tar({**content, "../4.cls": b"1", "../4.jpg": b"j", "/5.jpg": b"j", "6.json": b"[1]", "6.jpg": b"j"})
    (folder / "a.tar").write_bytes(data)
    source = sources.open_source(str(folder))
    assert [source[i].name for i in range(len(source))] == ["a.tar/0.jpg"]
    assert _left_out(source) == {
        "a.tar/1.jpg": NO_LABEL_INSIDE,
        "a.tar/2": "it has no image (gif, jpeg, jpg, png, webp) and no npy",
        "a.tar/3": "it has more than one image (jpg, png)",
        "a.tar/../4.cls": "its name leads out of the archive's folder",
        "a.tar/../4.jpg": "its name leads out of the archive's folder",
        "a.tar//5.jpg": "its name is absolute",
        "a.tar/6.jpg": NO_LABEL_INSIDE,
    }


def test_labels_that_would_exhaust_their_parsers(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar({"0.json": b"[" * 200_000, "0.jpg": b"j", "1.cls": b"1", "1.jpg": b"j"}))
    source = sources.open_source(str(tmp_path))
    assert [source[i].name for i in range(len(source))] == ["a.tar/1.jpg"]
    (tmp_path / "a.tar").write_bytes(_tar({"0.cls": b"1" * 5000, "0.jpg": b"j"}))
    assert len(sources.open_source(str(tmp_path)).classes[0]) == 5000


def test_labels_from_names_of_files_in_any_folders(class_tree: Path, tmp_path: Path) -> None:
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    for name, data in _files(class_tree).items():
        path = deep / name.split(".")[0][-1] / "more" / name.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        flat.mkdir(exist_ok=True)
        (flat / path.name).write_bytes(data)
    for folder in (flat, deep):
        source = sources.open_source(str(folder), labels_from="prefix")
        assert source.classes == CLASSES
        assert all(source[i].name.split("/")[-1].startswith(CLASSES[source[i].label]) for i in range(60))
        assert _make(source, tmp_path / f"out-{folder.name}").class_counts == (20, 20, 20)
    with pytest.raises(DataError, match=r"flat holds no images.*not in a class folder"):
        sources.open_source(str(flat))


@pytest.mark.parametrize("archive", ["folder", "zip", "tar"])
def test_labels_from_a_map(class_tree: Path, tmp_path: Path, archive: str) -> None:
    content = {f"00000/{name.replace('/', '-')}": data for name, data in _files(class_tree).items()}
    if archive == "folder":
        path = tmp_path / "all"
        for name, data in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif archive == "zip":
        path = _zip(tmp_path / "all.zip", content, zipfile.ZIP_STORED)
    else:
        path = tmp_path / "all.tar"
        path.write_bytes(_tar(content))
    labels = {name: i % 5 for i, name in enumerate(content)}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": list(labels.items())}))
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *labels.items()])
    made = _make(sources.open_source(str(path), labels_from=str(tmp_path / "dataset.json")), tmp_path / "out")
    assert made.class_counts == (12, 12, 12, 12, 12)
    assert _checksum(path, tmp_path / "csv", labels_from=str(tmp_path / "labels.csv")) == made.checksum


def test_other_labels_are_another_source(class_tree: Path, tmp_path: Path) -> None:
    identities = []
    for number in (0, 1):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({name: number for name in _files(class_tree)}))
        identities.append(sources.open_source(str(class_tree), None, ["a", "b"], str(path)).identity)
    assert identities[0]["sha256"] == identities[1]["sha256"]
    assert identities[0]["labels"] != identities[1]["labels"]


def test_files_without_a_label_and_labels_without_a_file(class_tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    labels = {name: 0 for name in list(_files(class_tree))[1:]}
    path.write_text(json.dumps(labels | {"ant/no-such.png": 0}))
    source = sources.open_source(str(class_tree), labels_from=str(path))
    assert _left_out(source) == {
        "ant/0000.jpg": f"has no label in {path}",
        "ant/no-such.png": f"has a label in {path}, but there is no such image",
    }
    path.write_text(json.dumps(labels | {"ant/0001.png": 7}))
    with pytest.raises(
        DataError, match=rf"{path}: ant/0001\.png has the label 7, which is out of range: .* 0 \.\.\. 2"
    ):
        sources.open_source(str(class_tree), None, CLASSES, str(path))
    path.write_text(json.dumps({"elsewhere.png": 0}))
    with pytest.raises(DataError, match="holds no images"):
        sources.open_source(str(class_tree), labels_from=str(path))


def test_unsafe_and_odd_members_of_archives_are_named_and_left_out(class_tree: Path, tmp_path: Path) -> None:
    image = (class_tree / "ant" / "0001.png").read_bytes()
    names = ["ant/0.png", "bee/0.png", "bee/0.png", "../../ant/evil.png", "/ant/evil.png", "ant/notes.txt"]
    names += ["__MACOSX/ant/._0.png", "ant/._1.png"]
    expected = {
        "bee/0.png": "the name occurs twice",
        "../../ant/evil.png": "its name leads out of the archive's folder",
        "/ant/evil.png": "its name is absolute",
        "ant/notes.txt": "not one of gif, jpeg, jpg, png, webp",
        "__MACOSX/ant/._0.png": "it holds what macOS knows of another file",
        "ant/._1.png": "it holds what macOS knows of another file",
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
        link = tarfile.TarInfo("ant/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    source = sources.open_source(str(tmp_path / "a.tar"))
    assert _left_out(source) == expected | {"ant/link.png": "it is a link or a device, not a file"}
    assert len(source) == 2
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, image)
    source = sources.open_source(str(tmp_path / "a.zip"))
    assert _left_out(source) == expected
    assert len(source) == 2


def _spoil_zip(path: Path, change: Callable[[bytearray, int], None]) -> None:
    """Changes the first member's entry of the archive's directory."""
    data = bytearray(path.read_bytes())
    change(data, data.index(b"PK\x01\x02"))
    path.write_bytes(data)


def _set(offset: int, format_: str, value: int) -> Callable[[bytearray, int], None]:
    return lambda data, entry: struct.pack_into(format_, data, entry + offset, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(8, "<H", 1), "it is encrypted"),
        (_set(10, "<H", 12), r"its compression \(method 12\) is not read; use deflate or none"),
        (_set(24, "<I", 3 << 30), "3,221,225,472 bytes are more than the 268,435,456 that a file may have"),
        (_set(20, "<I", 3 << 30), "it takes more than 268,435,456 bytes"),
        (_set(24, "<I", 40), "damaged in the archive: its length or crc32 is not what the directory says"),
        (_set(16, "<I", 40), "damaged in the archive: its length or crc32 is not what the directory says"),
        (_set(20, "<I", 5), "damaged in the archive: its length or crc32 is not what the directory says"),
    ],
)
def test_a_zips_bad_member_is_named_and_left_out(
    own_class_tree: Path, tmp_path: Path, change: Callable[[bytearray, int], None], reason: str
) -> None:
    path = _zip(tmp_path / "a.zip", _files(own_class_tree), zipfile.ZIP_DEFLATED)
    _spoil_zip(path, change)
    made = _make(sources.open_source(str(path)), tmp_path / "out")
    assert made.num_samples == 11
    (entry,) = made.skipped
    assert entry["file"] == "ant/0000.jpg"
    assert entry["reason"] == reason.replace("\\", "")


@pytest.mark.parametrize("change", [_set(6, "<H", 99), _set(8, "<H", 0x800)])
def test_a_zip_with_a_damaged_directory(tmp_path: Path, change: Callable[[bytearray, int], None]) -> None:
    path = _zip(tmp_path / "a.zip", {"ant/_.png": b"x"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"ant/_", b"ant/\xff"))
    _spoil_zip(path, change)
    with pytest.raises(DataError, match=r"archive .*/a\.zip is damaged or cut short \(.*\): restore it"):
        sources.open_source(str(path))


def test_a_bomb_in_a_zip_is_not_unpacked(own_class_tree: Path, tmp_path: Path) -> None:
    """40 MB of zeros in 40 kB, said to be 1 kB."""
    content = {"ant/bomb.png": bytes(40 << 20), **_files(own_class_tree)}
    path = _zip(tmp_path / "a.zip", content, zipfile.ZIP_DEFLATED)
    _spoil_zip(path, _set(24, "<I", 1000))
    source = sources.open_source(str(path))
    (bomb,) = (source[i] for i in range(len(source)) if source[i].name == "ant/bomb.png")
    with pytest.raises(DataError, match="damaged in the archive"):
        bomb.place.read()
    assert len(_make(source, tmp_path / "out").skipped) == 1


def test_damaged_archives(class_tree: Path, tmp_path: Path) -> None:
    whole = _tar_of_tars(class_tree)
    path = tmp_path / "train.tar"
    for length, message in [
        (0, rf"archive {path} is empty"),
        (
            len(whole) // 2,
            rf"archive {path} is cut short at byte {len(whole) // 2}, inside bee\.tar: .*; restore it or",
        ),
        (100, rf"archive {path} is cut short at byte 100, inside the header of its first member"),
    ]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=message):
            sources.open_source(str(path))
    inner = _tar({"0.jpg": b"x" * 1000})
    path.write_bytes(_tar({"ant.tar": inner[:1000]}))
    with pytest.raises(DataError, match=rf"archive {path}, in its member ant\.tar, is cut short .*inside 0\.jpg"):
        sources.open_source(str(path))
    path = _zip(tmp_path / "train.zip", _files(class_tree), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        DataError, match=rf"archive {path} is damaged or cut short \(.*\): restore it or fetch it again"
    ):
        sources.open_source(str(path))


def test_class_folders_that_do_not_lie_side_by_side(class_tree: Path, tmp_path: Path) -> None:
    image = (class_tree / "ant" / "0001.png").read_bytes()
    for names in (["train/ant/0.png", "test/ant/0.png"], ["ant/0.png", "1.png"], ["ant/0.png", "bee/x/0.png"]):
        (tmp_path / "a.tar").write_bytes(_tar({name: image for name in names}))
        with pytest.raises(DataError, match="do not lie in class folders side by side"):
            sources.open_source(str(tmp_path / "a.tar"))


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
    with pytest.raises(DataError, match=r"0001\.png is neither a folder nor a \.tar nor a \.zip"):
        sources.open_source(str(class_tree / "ant" / "0001.png"))
    with pytest.raises(DataError, match="source gs://bucket/train must lie on a local file system"):
        sources.open_source("gs://bucket/train")


def test_links_in_class_folders(own_class_tree: Path, tmp_path: Path) -> None:
    (own_class_tree / "ant" / "linked.png").symlink_to(own_class_tree / "bee" / "0001.png")
    (own_class_tree / "ant" / "broken.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(own_class_tree / "ant" / "pipe.png")
    source = sources.open_source(str(own_class_tree))
    assert len(source) == 13
    assert set(_left_out(source)) == {"ant/broken.png", "ant/pipe.png"}


def test_arrays_of_latents(tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    latents = np.random.default_rng(0).normal(1.0, 2.0, size=(40, 4, 3, 5)).astype(np.float16)
    latents[7, 0, 0, 0] = np.inf
    labels = np.arange(40) % 3
    np.save(folder / "latents.npy", latents)
    np.save(folder / "labels.npy", labels)
    made = _make(sources.open_source(str(folder)), tmp_path / "out")
    assert manifest.load(made.folder) == made
    assert (made.kind, made.num_samples) == ("latents", 39)
    assert made.skipped == ({"file": "latents.npy[7]", "reason": "it holds values that are not finite"},)
    good = np.delete(latents, 7, axis=0).astype(np.float64)
    statistics = dict(made.statistics)
    assert (statistics.pop("mean"), statistics.pop("std")) == pytest.approx((good.mean(), good.std()), rel=1e-5)
    assert statistics == {"latents": 39, "bytes": 39 * (128 + 120), "shape": [4, 3, 5], "dtype": "float16"}
    found = {}
    for shard in made.shards:
        with tarfile.open(Path(made.folder, shard.name)) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        for (_, label), (member, data) in zip(members[::2], members[1::2], strict=True):
            assert member.name.endswith(".npy")
            found[np.load(io.BytesIO(data)).tobytes()] = int(label)
    assert found == {latents[i].tobytes(): labels[i] for i in range(40) if i != 7}
    again = _make(sources.open_source(made.folder), tmp_path / "again")
    assert (again.kind, again.statistics) == ("latents", made.statistics)
    np.save(folder / "latents.npy", latents + 1)
    with pytest.raises(DataError, match="holds another set"):
        _make(sources.open_source(str(folder)), tmp_path / "out")


@pytest.mark.parametrize(
    ("latents", "labels", "message"),
    [
        (np.zeros((3, 4, 5)), [0, 0, 0], r"latents\.npy is float64, \[3, 4, 5\]; wanted: float16 or float32, \[N, C"),
        (np.zeros((3, 4, 5, 5)), [0, 0, 0], r"latents\.npy is float64"),
        (np.zeros((3, 4, 5, 5), np.float32), [0, 0], r"labels\.npy is int64, \[2\]; wanted: integers, \[3\]"),
        (np.zeros((3, 4, 5, 5), np.float32), [0.0, 1.0, 2.0], r"labels\.npy is float64"),
        (np.zeros((3, 4, 5, 5), np.float32), [0, -1, 0], r"labels\.npy\[1\] has the label -1, which is out of range"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, latents: np.ndarray, labels: list, message: str) -> None:
    np.save(tmp_path / "latents.npy", latents)
    np.save(tmp_path / "labels.npy", np.array(labels))
    with pytest.raises(DataError, match=message):
        sources.open_source(str(tmp_path))
    np.savez(tmp_path / "archive.npz", latents=latents)
    for content in (b"nothing", (tmp_path / "archive.npz").read_bytes()):
        (tmp_path / "latents.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"latents\.npy is no npy array, or is damaged"):
            sources.open_source(str(tmp_path))


def test_labels_where_a_source_has_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "latents.npy", np.zeros((1, 4, 5, 5), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(1, int))
    with pytest.raises(ConfigError, match=r"--labels=prefix, but .* holds labels of its own"):
        sources.open_source(str(tmp_path), labels_from="prefix")


def test_a_source_that_changes_while_it_is_read(class_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(_tar_of_tars(class_tree))
    source = sources.open_source(str(tmp_path / "train.tar"))
    (tmp_path / "train.tar").write_bytes(b"gone")
    with pytest.raises(
        DataError, match=r"train\.tar ends inside the .* bytes at byte .*: it changed while it was read"
    ):
        _make(source, tmp_path / "out")
    copy = Path(shutil.copytree(class_tree, tmp_path / "copy"))
    source = sources.open_source(str(copy))
    shutil.rmtree(copy / "ant")
    with pytest.raises(Exception, match=r"cannot read .*/copy/ant/.*: No such file"):
        _make(source, tmp_path / "other")
