"""What a verified folder is, and what is said of each way in which one can be damaged."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.data import adopt, manifest, shards, sources, tars, verify
from dist_diffusion.data.making import labels
from dist_diffusion.data.making.labels import Given
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import DataError

SECOND = "shard-000001.tar"


def _problems(folder: Path | str, decode: bool = False) -> list[str]:
    return verify.verify(str(folder), decode, 1, lambda _: None)[1]


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset of the header, size."""
    with tarfile.open(path) as tar:
        return [(member.name, member.offset, member.size) for member in tar]


def _rewrite(path: Path, content: list[tuple[str, bytes]]) -> None:
    """A sound tar of other members."""
    body = b"".join(tars.member(name, data) for name, data in content)
    path.write_bytes(body + tars.end(len(body)))


def _content(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def _change(made: Manifest, change: Callable[[dict], object]) -> None:
    path = Path(made.folder, "manifest.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _tell_the_truth(made: Manifest) -> None:
    """The manifest gets the shards' real sizes and checksums, as one has that was made for damaged shards."""

    def change(content: dict) -> None:
        for entry in content["shards"]:
            path = f"{made.folder}/{entry['name']}"
            entry["bytes"], entry["sha256"] = manifest.files.size(path), manifest.files.sha256(path)

    _change(made, change)


def _save_index(made: Manifest, rows: np.ndarray) -> None:
    path = Path(made.folder, "index.npy")
    np.save(path, rows)
    _change(made, lambda content: content["index"].update(sha256=manifest.files.sha256(str(path))))


def test_a_sound_set(made: Manifest) -> None:
    assert verify.verify(made.folder, False, 1, lambda _: None) == (made, [])
    assert _problems(f"{made.folder}/manifest.json", decode=True) == []


def test_a_set_of_an_earlier_version_has_no_statistics(made: Manifest) -> None:
    _change(made, lambda content: (content.pop("statistics"), content.pop("kind")))
    assert _problems(made.folder) == []


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda m: m[2][1],
            r"at byte {cut}, between two members \(after 17\.\w+\): its end-of-archive marker is missing",
        ),
        (lambda m: m[2][1] + 100, r"at byte {cut}, inside the header after 17\.\w+"),
        (lambda m: m[3][1], r"at byte {cut}, between the files of sample 18: cls is there, image is not"),
        (lambda m: m[3][1] + 512 + 9, r"at byte {cut}, inside 18\.\w+: 9 of its {size} bytes are there"),
        (lambda m: m[3][1] + 512 + m[3][2], r"at byte {cut}, in the padding after 18\.\w+"),
    ],
    ids=["member boundary", "header", "between two files", "mid-file", "padding"],
)
@pytest.mark.parametrize("manifest_knows", [False, True])
def test_a_truncated_shard(made: Manifest, cut: Callable[[list], int], message: str, manifest_knows: bool) -> None:
    """Told apart, also where the manifest was made for the shard as it is now."""
    path = Path(made.folder, SECOND)
    members, size = _members(path), path.stat().st_size
    length = cut(members)
    path.write_bytes(path.read_bytes()[:length])
    if manifest_knows:
        _tell_the_truth(made)
    else:
        with pytest.raises(DataError, match=f"shard {path} has {length} bytes, but manifest.json says {size}: restore"):
            manifest.load(made.folder)
    (problem,) = _problems(made.folder)
    wanted = message.format(cut=length, size=members[3][2])
    told = "" if manifest_knows else rf" \({length} bytes; manifest\.json says {size}\)"
    pattern = rf"^shard {path} is cut short {wanted}; restore it or fetch it again{told}$"
    assert re.search(pattern, problem), problem


def test_a_missing_shard(made: Manifest) -> None:
    Path(made.folder, SECOND).unlink()
    message = f"shard {made.folder}/{SECOND} is missing: restore it, or make a set with: python tools/make_shards.py"
    assert _problems(made.folder) == [f"{message} SOURCE OUT"]


def test_a_changed_byte(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    content = bytearray(path.read_bytes())
    name, offset, size = _members(path)[5]
    content[offset + 512 + size // 2] ^= 1
    path.write_bytes(content)
    found = _problems(made.folder)
    assert found[:2] == [
        f"shard {path} is not the file that manifest.json describes (its sha256 differs): restore it",
        f"shard {path}: sample {name} (byte {offset + 512}) is not what index.npy describes (its length or crc32 "
        f"differs): it was changed",
    ]


def test_a_changed_label_in_a_shard(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    content = _content(path)
    other = b"1" if content[4][1] != b"1" else b"2"
    label = content[4][1].decode()
    _rewrite(path, [(name, other if i == 4 else data) for i, (name, data) in enumerate(content)])
    _tell_the_truth(made)
    (problem,) = _problems(made.folder)
    assert problem.endswith(f" says that its label is {other.decode()}, index.npy {label}")
    assert f"sample {content[5][0]} " in problem


def test_duplicate_keys_and_unsafe_names(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    content = _content(path)
    more = [("17.cls", b"0"), (content[1][0], b"x"), ("../evil.cls", b"0"), ("/evil.jpg", b"x")]
    _rewrite(path, content + more)
    _tell_the_truth(made)
    what = f"shard {path}: member"
    assert _problems(made.folder) == [
        f"{what} 17.cls: the key 17 occurs twice",
        f"{what} {content[1][0]}: the key 17 occurs twice",
        f"{what} ../evil.cls: its name leads out of the archive's folder",
        f"{what} /evil.jpg: its name is absolute",
    ]


def test_samples_that_do_not_pair_up(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    content = _content(path)
    without_image = [entry for i, entry in enumerate(content) if i != 3]
    _rewrite(path, without_image)
    _tell_the_truth(made)
    found = _problems(made.folder)
    assert f"shard {path}: member 18: it has no image (gif, jpeg, jpg, png, webp) and no npy" in found
    # All that follow have moved.
    assert any("more differences from index.npy" in problem for problem in found)
    assert len(found) < 20


def test_an_index_of_other_places(made: Manifest) -> None:
    rows = np.load(Path(made.folder, "index.npy"))
    rows["offset"][20] += 512
    _save_index(made, rows)
    offset = int(rows["offset"][20])
    names = [name for name, _, _ in _members(Path(made.folder, SECOND))]
    assert _problems(made.folder) == [
        f"shard {made.folder}/{SECOND}: sample {names[7]} (byte {offset - 512}) is not in index.npy",
        f"shard {made.folder}/{SECOND}: index.npy has a sample at byte {offset}, where the tar has none",
    ]


def test_an_index_with_a_label_out_of_range(made: Manifest) -> None:
    rows = np.load(Path(made.folder, "index.npy"))
    rows["label"][18] = 3
    _save_index(made, rows)
    message = (
        f"{made.folder}/index.npy: sample 1 of shard {SECOND} has label 3, but the classes of manifest.json are "
        f"0 ... 2 (1 such samples); make a set with: python tools/make_shards.py SOURCE OUT"
    )
    assert _problems(made.folder) == [message]
    with pytest.raises(DataError) as caught:
        manifest.index(manifest.load(made.folder))
    assert str(caught.value) == message


def test_a_manifest_that_contradicts_the_set(made: Manifest) -> None:
    _change(made, lambda content: content.update(class_counts=[1, 2, 3]))
    assert _problems(made.folder) == [
        "manifest.json: class_counts are [1, 2, 3], but the index's labels [20, 20, 20]",
    ]
    _change(made, lambda content: content.update(class_counts=[20, 20, 20]))
    _change(made, lambda content: content["statistics"]["modes"].update(RGB=1))
    (problem,) = _problems(made.folder)
    assert problem.startswith("manifest.json: the statistics are {") and "'RGB': 1" in problem


def test_rows_that_name_another_shard(made: Manifest) -> None:
    rows = np.load(Path(made.folder, "index.npy"))
    rows["shard"][18] = 0
    _save_index(made, rows)
    assert _problems(made.folder) == [f"index.npy: rows of {SECOND} name another shard"]


def test_undecodable_samples_are_listed_one_and_all(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    content = _content(path)
    _rewrite(path, [(name, data if name.endswith("cls") else data[:40]) for name, data in content])
    (shard,) = (shard for shard in made.shards if shard.name == SECOND)
    _tell_the_truth(made)
    found = [problem for problem in _problems(made.folder) if "cannot be decoded" in problem]
    assert len(found) == shard.samples
    assert found[0].startswith(f"shard {path}: sample {content[1][0]} cannot be decoded: ")


def _spoil_a_png(path: Path) -> str:
    """Changes the first PNG so that only decoding tells; gives its name."""
    content = _content(path)
    number = next(i for i, (name, _) in enumerate(content) if name.endswith(".png"))
    name, data = content[number][0], bytearray(content[number][1])
    data[len(data) // 2] ^= 0xFF
    content[number] = (name, bytes(data))
    _rewrite(path, content)
    return name


def test_decoding_finds_more(made: Manifest) -> None:
    path = Path(made.folder, SECOND)
    name = _spoil_a_png(path)
    assert not any("cannot be decoded" in problem for problem in _problems(made.folder))
    assert any(f"{name} cannot be decoded" in problem for problem in _problems(made.folder, decode=True))


def test_workers_find_the_same(made: Manifest) -> None:
    for name in (SECOND, "shard-000003.tar"):
        path = Path(made.folder, name)
        path.write_bytes(path.read_bytes()[:3000])
    assert verify.verify(made.folder, False, 2, lambda _: None)[1] == _problems(made.folder)


def test_without_a_manifest_there_is_nothing_to_verify(made: Manifest) -> None:
    Path(made.folder, "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        _problems(made.folder)


def _adopt(folder: Path, given: Given = None, classes: list[str] | None = None) -> tuple[Manifest | None, list[str]]:
    return adopt.make_manifest(str(folder), given, classes, False, 1, lambda _: None)


@pytest.fixture
def orphans(made: Manifest) -> Path:
    """Shards without manifest and index."""
    folder = Path(made.folder)
    (folder / "index.npy").unlink()
    (folder / "manifest.json").unlink()
    return folder


def test_a_manifest_for_our_own_shards_is_the_one_they_had(made: Manifest, tmp_path: Path) -> None:
    index = (Path(made.folder) / "index.npy").read_bytes()
    folder = Path(shutil.copytree(made.folder, tmp_path / "copy"))
    (folder / "index.npy").unlink()
    (folder / "manifest.json").unlink()
    found, problems = _adopt(folder, None, list(made.classes))
    assert problems == [] and found is not None
    assert (folder / "index.npy").read_bytes() == index
    assert (found.shards, found.classes, found.class_counts) == (made.shards, made.classes, made.class_counts)
    assert found.statistics == made.statistics
    assert manifest.load(str(folder)) == found
    assert _problems(folder) == []
    with pytest.raises(DataError, match=r"holds a manifest\.json already"):
        _adopt(folder)


def test_what_cannot_be_used_stays_in_the_shards_and_out_of_the_index(orphans: Path) -> None:
    path = orphans / SECOND
    content = _content(path)
    names = [name for name, _ in content]
    content[3] = (names[3], b"no image")
    content[4] = (names[4], b"")
    more = [("../evil.jpg", b"x"), ("17.cls", b"0"), ("note.txt", b"hello")]
    _rewrite(path, content + more)
    before = path.read_bytes()
    found, problems = _adopt(orphans)
    assert problems == [] and found is not None
    assert path.read_bytes() == before
    assert {entry["file"]: entry["reason"][:30] for entry in found.skipped} == {
        f"{SECOND}/{names[3]}": "UnidentifiedImageError: no ima",
        f"{SECOND}/{names[5]}": "has no label: neither a number",
        f"{SECOND}/../evil.jpg": "its name leads out of the arch",
        f"{SECOND}/17.cls": "the key 17 occurs twice",
        f"{SECOND}/note": "it has no image (gif, jpeg, jp",
    }
    assert [shard.samples for shard in found.shards] == [17, 15, 17, 9]
    assert _problems(orphans) == []
    rows = manifest.index(manifest.load(str(orphans)))
    assert len(rows) == 58


def test_labels_from_a_map_or_from_names(orphans: Path, tmp_path: Path) -> None:
    names = [name for path in sorted(orphans.glob("*.tar")) for name, _ in _content(path) if not name.endswith("cls")]
    (tmp_path / "labels.json").write_text(
        json.dumps({name: "even" if i % 2 == 0 else "odd" for i, name in enumerate(names[1:])})
    )
    found, problems = _adopt(orphans, labels.parse(str(tmp_path / "labels.json")))
    assert problems == [] and found is not None
    assert (found.classes, found.class_counts) == (("even", "odd"), (30, 29))
    assert [entry["file"] for entry in found.skipped] == [f"shard-000000.tar/{names[0]}"]
    assert _problems(orphans) == []
    (orphans / "manifest.json").unlink()
    found, _ = _adopt(orphans, "prefix")
    assert found is not None and len(found.classes) == 60


@pytest.mark.parametrize("length", [0, 3000])
def test_damaged_shards_get_no_manifest(orphans: Path, length: int) -> None:
    (orphans / SECOND).write_bytes((orphans / SECOND).read_bytes()[:length])
    shutil.copy(orphans / "shard-000000.tar", orphans / "x.tar")
    found, problems = _adopt(orphans)
    assert found is None
    assert len(problems) == 2
    assert problems[0].startswith(f"shard {orphans}/{SECOND} is ")
    assert problems[1] == "shards shard-000000.tar and x.tar are the same: remove one of them"
    assert not (orphans / "manifest.json").exists() and not (orphans / "index.npy").exists()


def test_shards_of_two_kinds(orphans: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 3, 3), np.float32))
    _rewrite(orphans / "x.tar", [("0.cls", b"1"), ("0.npy", stream.getvalue())])
    assert _adopt(orphans)[1] == ["shards of images and of latents: shard-000003.tar, x.tar; a set is of one kind"]
    for path in orphans.glob("shard-*"):
        path.unlink()
    found, _ = _adopt(orphans)
    assert found is not None and (found.kind, found.statistics["shape"]) == ("latents", [4, 3, 3])
    assert _problems(orphans) == []


def test_what_only_decoding_finds_is_left_out_and_verifies_with_and_without_it(orphans: Path) -> None:
    path = orphans / SECOND
    name = _spoil_a_png(path)
    found, _ = adopt.make_manifest(str(orphans), None, None, True, 1, lambda _: None)
    assert found is not None and [entry["file"] for entry in found.skipped] == [f"{SECOND}/{name}"]
    assert _problems(orphans, decode=False) == _problems(orphans, decode=True) == []


def test_labels_with_leading_zeros_are_the_numbers(orphans: Path) -> None:
    path = orphans / SECOND
    _rewrite(path, [(name, b"00" + data if name.endswith("cls") else data) for name, data in _content(path)])
    found, _ = _adopt(orphans)
    assert found is not None and found.class_counts == (20, 20, 20)
    assert _problems(orphans) == []


def test_an_unfinished_set_gets_no_manifest(orphans: Path) -> None:
    (orphans / "UNFINISHED").write_text("{}")
    with pytest.raises(DataError, match=r"holds an unfinished set \(UNFINISHED says which\): run tools/make"):
        _adopt(orphans)
    assert not (orphans / "index.npy").exists()


def test_a_folder_without_tars(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.tar files"):
        _adopt(tmp_path)


def test_a_set_of_latents_verifies(tmp_path: Path) -> None:
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).normal(size=(20, 4, 3, 3)).astype(np.float32))
    np.save(tmp_path / "labels.npy", np.arange(20) % 2)
    made = shards.make(sources.open_source(str(tmp_path)), str(tmp_path / "out"), 8, seed=0, say=lambda _: None)
    assert made is not None and _problems(made.folder) == []
