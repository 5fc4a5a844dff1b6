"""Training from an object store that misbehaves: the same run as from local files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.proxy import Fault
from faults.servers import Service
from support import Launcher, column, train_arguments

# A small dataset is a handful of requests: every fault meets each kind of object that is read.
FAULTS = (
    Fault("status", path=r"manifest\.json", status=503, times=2),
    Fault("reset", path=r"index\.npy", at=1000),
    Fault("truncate", path=r"shard-000000\.tar", at=20_000),
    Fault("corrupt", path=r"shard-000001\.tar", at=30_000),
    Fault("stall", path=r"shard-000002\.tar", at=5_000, seconds=3),
    Fault("reset", path=r"shard-000003\.tar", at=10_000),
)


def place_shards(service: Service, folder: Path) -> str:
    for path in sorted(folder.iterdir()):
        service.place(f"shards/{path.name}", path.read_bytes())
    return f"data.shards={service.root}/shards"


@pytest.fixture(scope="module")
def from_local_files(train: Callable[..., list[dict]]) -> list[str]:
    """The digests of an epoch and two steps of the next."""
    return column(train("local-files", 1, "train.steps=10"), "batch_digest")


@pytest.mark.parametrize(("scheme", "ranks"), [("s3", 2), ("az", 2), ("https", 1)])
def test_an_epoch_through_faults_is_the_same_epoch(
    scheme: str,
    ranks: int,
    reach: Callable[[str], Service],
    train: Callable[..., list[dict]],
    workplace: Path,
    from_local_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    service = reach(scheme)
    shards = place_shards(service, workplace / "shards")
    monkeypatch.setenv("DIST_DIFFUSION_CACHE", str(tmp_path / "cache"))
    faults = [dataclasses.replace(fault) for fault in FAULTS]
    service.proxy.inject(*faults)
    found = train(f"from-{scheme}", ranks, shards, "train.steps=10", "data.workers=1")
    assert [fault.path for fault in faults if not fault.fired] == []
    assert column(found, "batch_digest") == from_local_files
    assert found[-1]["replaced_samples"] == 0


def test_a_store_that_stays_away_ends_the_run_with_its_name(
    reach: Callable[[str], Service],
    launcher: Launcher,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    service = reach("s3")
    shards = place_shards(service, workplace / "shards")
    monkeypatch.setenv("DIST_DIFFUSION_CACHE", str(tmp_path / "cache"))
    service.proxy.inject(Fault("status", path=r"shard-000002\.tar", status=503, times=None))
    _, err = launcher.run(2, *train_arguments(workplace, "away"), shards, code=2)
    assert f"cannot read {service.root}/shards/shard-000002.tar" in err
