"""A run that loses its directory goes on from its mirror, bit by bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.proxy import Fault
from faults.servers import Service
from support import Launcher, column, rows, train_arguments

PROFILE = "ema.stds=[0.1]"


@pytest.fixture(scope="module")
def uninterrupted(train: Callable[..., list[dict]]) -> list[dict]:
    return train("not-mirrored", 2, PROFILE)


def test_the_run_goes_on_from_its_mirror(
    reach: Callable[[str], Service],
    launcher: Launcher,
    workplace: Path,
    uninterrupted: list[dict],
) -> None:
    service = reach("s3")
    run = workplace / "mirrored"
    mirror = f"checkpoint.mirror={service.root}/run"
    service.proxy.inject(Fault("status", path=r"rank-00001\.safetensors", status=503))
    arguments = [*train_arguments(workplace, run.name), PROFILE, mirror]
    out, _ = launcher.run(2, *arguments, "train.steps=8")
    assert "mirrored step-000000008" in out
    kept = [folder.name for folder in sorted((run / "averages").iterdir())]
    shutil.rmtree(run)
    out, _ = launcher.run(2, *arguments)
    assert f"restoring {run} from {service.root}/run" in out and "resuming at step 8" in out
    found = rows(run)
    for key in ("loss", "grad_norm", "batch_digest"):
        assert column(found, key) == column(uninterrupted, key)
    assert [folder.name for folder in sorted((run / "averages").iterdir())][:-1] == kept
    # The directory of an earlier start of the same run: it is as far, but not what the mirror holds.
    _, err = launcher.run(1, *train_arguments(workplace, "not-mirrored"), PROFILE, mirror, code=2)
    assert "another run writes there" in err
