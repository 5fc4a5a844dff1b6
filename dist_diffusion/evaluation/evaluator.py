"""Evaluates the points of a series alike, each as soon as it is sampled."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from dist_diffusion.config.points import Point
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation import judge as judges
from dist_diffusion.evaluation import reference as references
from dist_diffusion.evaluation.images import ImageSource, open_images
from dist_diffusion.evaluation.judge import Judge
from dist_diffusion.evaluation.networks import efficientnet_lite0
from dist_diffusion.evaluation.reference import Statistics
from dist_diffusion.evaluation.report import RESULT, Say, measure
from dist_diffusion.evaluation.series import Opened
from dist_diffusion.evaluation.tables import summary
from dist_diffusion.sampling import cost, job
from dist_diffusion.sampling.cost import JobCost
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find

REFERENCE = "reference.npz"


@dataclass(frozen=True)
class Finished:
    """A point that was sampled and evaluated."""

    point: Point
    metrics: dict[str, Any]
    """As `evaluate` gives them."""
    cost: JobCost
    samples: str
    """The npz."""


class Evaluator:
    """Evaluates points alike, on one rank; what they share is read once."""

    def __init__(self, opened: Opened, say: Say) -> None:
        self._opened = opened
        self._settings = opened.series.evaluation
        self._say = say

    def check(self) -> None:
        """ConfigError or DataError where reference or judge cannot be used."""
        assert self.side is not None
        assert self.judge is not None or self._settings.judge is None

    @cached_property
    def side(self) -> Statistics | ImageSource:
        """The reference, as it is given."""
        reference = self._settings.reference
        assert reference is not None
        return references.open_side(
            reference, efficientnet_lite0(), self._opened.image_size, self._settings.num_reference
        )

    @cached_property
    def reference(self) -> Statistics:
        """Its statistics: as saved, or computed and kept in OUT/reference.npz."""
        side, network, path = self.side, efficientnet_lite0(), files.join(self._opened.series.out, REFERENCE)
        if isinstance(side, Statistics):
            return side
        if files.exists(path):
            kept = references.load(path, network)
            if (kept.checksum, kept.num_images, kept.image_size) == (side.checksum(), side.num_images, side.image_size):
                return kept
        self._say(f"reference={self._settings.reference}: reading {side.num_images} images")
        made = references.compute(side, network, self._settings.batch_size)
        references.save(made, path)
        return made

    @cached_property
    def judge(self) -> Judge | None:
        """The judge. ConfigError where it cannot judge the model's images."""
        if self._settings.judge is None:
            return None
        judge = judges.load(self._settings.judge)
        wanted = self._opened.image_size, self._opened.num_classes
        if judge.image_size != wanted[0] or judge.num_classes < wanted[1]:
            raise ConfigError(
                f"judge={judge.path} is a classifier of {judge.image_size} px and {judge.num_classes} classes, the "
                f"model makes {wanted[0]} px of {wanted[1]} classes"
            )
        return judge

    @cached_property
    def judge_sha256(self) -> str | None:
        """Of the judge's export."""
        return None if self._settings.judge is None else files.sha256(find(self._settings.judge, None))

    def compared(self, point: Point) -> dict[str, Any]:
        """What a point's numbers depend on beyond its images."""
        return {
            "num_samples": point.recipe.num_samples,
            "network": self.reference.network,
            "reference_checksum": self.reference.checksum,
            "num_reference": self.reference.num_images,
            "reference_image_size": self.reference.image_size,
            "seed": self._settings.seed,
            "judge_sha256": self.judge_sha256,
        }

    def finished(self) -> dict[str, Finished]:
        """By name, the points that were evaluated as they would be now."""
        found = {}
        for point in self._opened.series.points:
            path = files.join(_folder(point), RESULT)
            if not files.exists(path):
                continue
            content = files.read_json(path)
            # `evaluate` may have been told to write there: what it compared is not known.
            now, before = self.compared(point), content.get("compared", {})
            changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
            if changed:
                self._say(f"{point.name} will be evaluated again ({'; '.join(changed)})")
            else:
                found[point.name] = self._result(point, content)
        return found

    def evaluate(self, point: Point, samples: str) -> Finished:
        """Compares a point's images with the reference and publishes its metrics.json."""
        source = open_images(samples)
        judge = self.judge
        if judge is not None and source.labels is None:
            self._say(f"{point.name} has no labels: no label agreement")
            judge = None
        settings = replace(self._settings, samples=samples)
        metrics = measure(settings, efficientnet_lite0(), source, self.reference, judge, lambda _: None)
        spent = cost.read(_folder(point))
        content = {**metrics, "cost": asdict(spent), "compared": self.compared(point)}
        publish.write_json(files.join(_folder(point), RESULT), content)
        self._say(f"{point.name}: {summary(metrics)}")
        return self._result(point, content)

    def _result(self, point: Point, content: dict[str, Any]) -> Finished:
        size = self._opened.image_size
        samples = files.join(_folder(point), job.samples_name(point.recipe.num_samples, size, size))
        metrics = {key: value for key, value in content.items() if key not in ("cost", "compared")}
        return Finished(point, metrics, JobCost(**content["cost"]), samples)


def _folder(point: Point) -> str:
    assert point.recipe.out is not None
    return point.recipe.out
