"""Shards made on an object store, verified there, and described where others made them."""

from pathlib import Path

import numpy as np
import pytest
from faults.proxy import Fault
from faults.servers import Service
from support import write_class_tree

from dist_diffusion.data import adopt, manifest, shards, sources, verify
from dist_diffusion.data.making.share import WHOLE, Share
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files, publish


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2 classes of 15 images."""
    return str(write_class_tree(tmp_path_factory.mktemp("tree"), 30, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_DIFFUSION_CACHE", str(tmp_path / "cache"))
    manifest.cache.from_environment.cache_clear()


def _make(tree: str, out: str, share: Share = WHOLE) -> manifest.Manifest | None:
    return shards.make(sources.open_source(tree), out, 8, seed=0, say=lambda _: None, share=share)


def _content(folder: str) -> dict[str, bytes]:
    return {name: files.read_bytes(files.join(folder, name)) for name in files.list_names(folder)}


def _verify(folder: str) -> list[str]:
    return verify.verify(folder, False, 1, lambda _: None)[1]


def test_two_shares_make_a_set_there_that_is_the_local_one(store: Service, tree: str, tmp_path: Path) -> None:
    _make(tree, str(tmp_path / "local"))
    out = f"{store.root}/set"
    assert _make(tree, out, Share(1, 2)) is None
    store.proxy.inject(
        Fault("status", path="shard-00000", status=503, times=2), Fault("reset", path=r"manifest\.json", times=1)
    )
    made = _make(tree, out, Share(0, 2))
    store.proxy.inject()
    assert _content(out) == _content(str(tmp_path / "local"))
    assert made is not None and manifest.load(out) == made
    assert np.array_equal(manifest.index(made), np.load(tmp_path / "local" / "index.npy"))
    assert _make(tree, out) == made
    assert _verify(out) == []


def test_a_finished_shard_is_verified_there(store: Service, tree: str, tmp_path: Path) -> None:
    _make(tree, str(tmp_path / "local"))
    out = f"{store.root}/set"
    assert _make(tree, out, Share(1, 2)) is None
    damaged = bytearray(files.read_bytes(f"{out}/shard-000001.tar"))
    damaged[600] ^= 1
    publish.write_bytes(f"{out}/shard-000001.tar", bytes(damaged))
    assert _make(tree, out) is not None
    assert _content(out) == _content(str(tmp_path / "local"))


def test_what_is_wrong_there_is_told(service: Service, tree: str, tmp_path: Path) -> None:
    _make(tree, str(tmp_path / "local"))
    for path in (tmp_path / "local").iterdir():
        content = path.read_bytes()
        if path.name != "shard-000003.tar":
            service.place(f"set/{path.name}", content[:3000] if path.name == "shard-000001.tar" else content)
    folder = f"{service.root}/set"
    size = (tmp_path / "local" / "shard-000001.tar").stat().st_size
    with pytest.raises(DataError, match=rf"shard {folder}/shard-000001\.tar has 3000 bytes, but manifest\.json says"):
        manifest.load(folder)
    first, second = _verify(folder)
    assert first.startswith(f"shard {folder}/shard-000001.tar is cut short at byte 3000, ")
    assert first.endswith(f" (3000 bytes; manifest.json says {size})")
    assert second.startswith(f"shard {folder}/shard-000003.tar is missing: restore it")


def test_shards_of_others_are_described_there(store: Service, tree: str, tmp_path: Path) -> None:
    _make(tree, str(tmp_path / "local"))
    for path in (tmp_path / "local").glob("*.tar"):
        store.place(f"set/{path.name}", path.read_bytes())
    found, problems = adopt.make_manifest(f"{store.root}/set", None, ["a", "b"], False, 1, lambda _: None)
    assert problems == [] and found == manifest.load(f"{store.root}/set")
    assert files.read_bytes(f"{store.root}/set/index.npy") == (tmp_path / "local" / "index.npy").read_bytes()
