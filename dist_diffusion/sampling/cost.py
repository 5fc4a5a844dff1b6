"""What sampling costs: evaluations of networks, and time; of each shard, and of a job.

A shard's cost is published before its images, which say that it is finished.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_diffusion.sampling.job import Job
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files, publish

TOTAL = "cost.json"


@dataclass
class Evaluations:
    """Images that went through networks so far."""

    network: int = 0
    """Forward passes of diffusion networks."""
    classifier: int = 0
    """Forward and backward passes of the classifier."""

    def since(self, before: "Evaluations") -> "Evaluations":
        """What was added to an earlier copy."""
        return Evaluations(self.network - before.network, self.classifier - before.classifier)


@dataclass(frozen=True)
class ShardCost:
    """Of making one shard, or several."""

    images: int
    """Whole batches: those at the end that were made and dropped count as work done."""
    evaluations: Evaluations
    seconds: float
    """Of one rank."""


@dataclass(frozen=True)
class JobCost:
    """Of all images of a job; OUT/cost.json."""

    images: int
    """As ShardCost counts them."""
    network_evaluations_per_image: float
    classifier_evaluations_per_image: float
    seconds: float
    """Summed over ranks."""
    images_per_second_per_rank: float

    def __str__(self) -> str:
        of_classifier = self.classifier_evaluations_per_image
        classifier = f" and {of_classifier:g} classifier" if of_classifier else ""
        return (
            f"{self.network_evaluations_per_image:g} network{classifier} evaluations an image, {self.seconds:.1f} s, "
            f"{self.images_per_second_per_rank:.1f} img/s a rank"
        )


def publish_shard(job: Job, shard: OutputShard, cost: ShardCost) -> None:
    """Writes OUT/cost/shard-FIRST-STOP.json."""
    publish.write_json(job.cost_path(shard), dataclasses.asdict(cost))


def add_up(job: Job, shards: Sequence[OutputShard]) -> JobCost | None:
    """Writes OUT/cost.json; None, and nothing written, where a shard has no cost: an earlier version made it."""
    paths = [job.cost_path(shard) for shard in shards]
    if not all(files.exists(path) for path in paths):
        return None
    total = total_of([_shard_cost(files.read_json(path)) for path in paths])
    publish.write_json(files.join(job.out, TOTAL), dataclasses.asdict(total))
    return total


def total_of(costs: Sequence[ShardCost]) -> JobCost:
    """Of shards, at least one."""
    images, seconds = sum(cost.images for cost in costs), sum(cost.seconds for cost in costs)
    return JobCost(
        images=images,
        network_evaluations_per_image=sum(cost.evaluations.network for cost in costs) / images,
        classifier_evaluations_per_image=sum(cost.evaluations.classifier for cost in costs) / images,
        seconds=seconds,
        images_per_second_per_rank=images / seconds,
    )


def read(folder: str) -> JobCost:
    """The cost of a finished job. StorageError where there is none."""
    return JobCost(**files.read_json(files.join(folder, TOTAL)))


def _shard_cost(content: dict[str, Any]) -> ShardCost:
    return ShardCost(content["images"], Evaluations(**content["evaluations"]), content["seconds"])
