"""What sampling costs: counted and timed by shard, added up by job."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.sampling import cost, npz, run
from dist_diffusion.sampling.cost import Evaluations, JobCost
from dist_diffusion.sampling.job import Job
from dist_diffusion.sampling.plan import OutputShard, output_shards


class Making:
    """Three evaluations of networks and two of the classifier an image."""

    def __init__(self) -> None:
        self.evaluations = Evaluations(network=1000, classifier=7)

    def __call__(self, indices: Sequence[int]) -> tuple[np.ndarray, None]:
        self.evaluations.network += 3 * len(indices)
        self.evaluations.classifier += 2 * len(indices)
        return np.zeros((len(indices), 2, 2, 3), dtype=np.uint8), None


def job_of(folder: Path) -> Job:
    return Job(str(folder), {}, {}, 1, "cpu", None)


def write(job: Job, shards: list[OutputShard]) -> None:
    making = Making()
    for shard in shards:
        run.write_shard(job, shard, making, batch_size=4)  # type: ignore[arg-type]


def test_images_that_are_dropped_count_as_work(tmp_path: Path) -> None:
    job, shards = job_of(tmp_path), output_shards(13, 8)
    write(job, shards)
    found = [json.loads(Path(job.cost_path(shard)).read_text()) for shard in shards]
    assert [Path(job.cost_path(shard)).name for shard in shards][1] == "shard-000000008-000000013.json"
    # Of the second shard five images are kept, eight were made.
    assert [content["images"] for content in found] == [8, 8]
    assert [content["evaluations"] for content in found] == [{"network": 24, "classifier": 16}] * 2
    total = cost.add_up(job, shards)
    assert total is not None and total == cost.read(job.out)
    seconds = sum(content["seconds"] for content in found)
    assert total == JobCost(16, 3.0, 2.0, seconds, 16 / seconds) and seconds > 0


def test_a_shard_that_is_there_has_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, the shard is made again."""
    job, (shard,) = job_of(tmp_path), output_shards(4, 8)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(npz, "publish_npz", killed)
    with pytest.raises(KeyboardInterrupt):
        write(job, [shard])
    assert job.missing([shard]) == [shard] and Path(job.cost_path(shard)).exists()


def test_without_the_cost_of_every_shard_there_is_none(tmp_path: Path) -> None:
    job, shards = job_of(tmp_path), output_shards(16, 8)
    write(job, shards)
    Path(job.cost_path(shards[0])).unlink()
    assert cost.add_up(job, shards) is None
    assert not (tmp_path / "cost.json").exists()
    write(job, shards[:1])
    assert cost.add_up(job, shards) is not None


def test_it_is_told_in_a_line() -> None:
    assert str(JobCost(16, 40.0, 0.0, 3.21, 4.98)) == "40 network evaluations an image, 3.2 s, 5.0 img/s a rank"
    assert str(JobCost(16, 20.0, 20.0, 3.0, 5.0)).startswith("20 network and 20 classifier evaluations an image")
