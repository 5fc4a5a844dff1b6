"""`dist-diffusion evaluate`: from two sets of images to metrics.json and a table."""

from collections.abc import Callable
from typing import Any

import torch

from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation import judge as judges
from dist_diffusion.evaluation import metrics
from dist_diffusion.evaluation.images import ImageSource
from dist_diffusion.evaluation.judge import Judge
from dist_diffusion.evaluation.networks import FeatureNetwork, efficientnet_lite0
from dist_diffusion.evaluation.reference import Statistics, compute, open_side
from dist_diffusion.storage import files, publish

RESULT = "metrics.json"
UNBIASED_ENOUGH = 10_000
"""Below so many images a Fréchet distance is mostly its own bias."""

Say = Callable[[str], None]


def evaluate(recipe: EvaluateRecipe, say: Say) -> dict[str, Any]:
    """Compares samples with reference, writes metrics.json in `out` and returns its content.

    ConfigError and DataError name the key or path; all that can be checked is, before the networks run.
    """
    samples_path = _given(recipe.samples, "samples", "PATH (npz, sample job, shards or saved statistics)")
    reference_path = _given(recipe.reference, "reference", "PATH (npz, sample job, shards or saved statistics)")
    out = _given(recipe.out, "out", "FOLDER (for metrics.json)")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    network = efficientnet_lite0()
    samples_side = open_side(samples_path, network, recipe.image_size, None)
    image_size = recipe.image_size or samples_side.image_size
    reference_side = open_side(reference_path, network, image_size, recipe.num_reference)
    judge = None if recipe.judge is None else _checked_judge(recipe.judge, samples_side)

    result = measure(recipe, network, samples_side, reference_side, judge, say)
    publish.write_json(files.join(out, RESULT), result)
    for line in [*table(result), f"written to {files.join(out, RESULT)}"]:
        say(line)
    return result


def measure(
    recipe: EvaluateRecipe,
    network: FeatureNetwork,
    samples_side: Statistics | ImageSource,
    reference_side: Statistics | ImageSource,
    judge: Judge | None,
    say: Say,
) -> dict[str, Any]:
    """What metrics.json holds, of two sides that are open and a judge that knows the samples' labels."""
    samples = _statistics(samples_side, network, recipe.batch_size, f"samples={recipe.samples}", say)
    reference = _statistics(reference_side, network, recipe.batch_size, f"reference={recipe.reference}", say)
    result = compare(samples, reference, network, recipe.seed)
    if judge is not None:
        assert not isinstance(samples_side, Statistics)
        result |= judges.judged(judge, samples_side, recipe.batch_size)
    return result | {
        "num_samples": samples.num_images,
        "num_reference": reference.num_images,
        "network": network.name,
        "warnings": warnings(samples, reference, network, recipe.num_reference),
        "samples": recipe.samples,
        "reference": recipe.reference,
    }


def compare(samples: Statistics, reference: Statistics, network: FeatureNetwork, seed: int) -> dict[str, Any]:
    """The metrics of two sets seen through one network."""
    precision, recall = metrics.precision_recall(
        samples.features, reference.features, samples.squared_radii, reference.squared_radii
    )
    return {
        "fd": metrics.frechet_distance(samples.mu, samples.sigma, reference.mu, reference.sigma),
        "fd_name": network.distance_name,
        "kid": metrics.kid(samples.features, reference.features, seed),
        "score": samples.score,
        "score_std": samples.score_std,
        "precision": precision,
        "recall": recall,
    }


def warnings(
    samples: Statistics, reference: Statistics, network: FeatureNetwork, num_reference: int | None
) -> list[str]:
    """What a reader of the numbers has to know before comparing them."""
    found = []
    name, fewest = network.distance_name, min(samples.num_images, reference.num_images)
    if fewest < UNBIASED_ENOUGH:
        text = f"{name} is biased upwards with {fewest} images: compare it only with values at the same numbers"
        dimensions = samples.features.shape[1]
        if fewest <= dimensions:
            text += f" ({fewest} images do not span the {dimensions} feature dimensions)"
        found.append(text)
    if samples.image_size != reference.image_size:
        found.append(
            f"the samples are {samples.image_size} px, the reference {reference.image_size} px: "
            "the difference in sharpness is part of every number"
        )
    if num_reference is not None and reference.num_images != num_reference:
        found.append(f"num_reference={num_reference}, but the reference is {reference.num_images} images")
    return found


def table(result: dict[str, Any]) -> list[str]:
    """The lines that are printed."""
    score = f"{result['score']:.2f}"
    if result["score_std"]:
        score += f" +- {result['score_std']:.2f}"
    lines = [
        f"samples    {result['samples']} ({result['num_samples']} images)",
        f"reference  {result['reference']} ({result['num_reference']} images)",
        _row(result["fd_name"], f"{result['fd']:.3f}", "lower is better; not comparable with published FID"),
        _row("KID", f"{result['kid']:.5f}", "lower is better"),
        _row("score", score, "higher is better"),
        _row("precision", f"{result['precision']:.3f}", "higher is better"),
        _row("recall", f"{result['recall']:.3f}", "higher is better"),
    ]
    if "label_agreement" in result:
        lines.append(_row("label agreement", f"{result['label_agreement']:.3f}", "higher is better"))
        lines.append(_row("judge's score", f"{result['judge_score']:.3f}", "higher is better"))
    return lines + [f"warning: {text}" for text in result["warnings"]]


def _row(name: str, value: str, meaning: str) -> str:
    return f"  {name:<16}{value:>16}   {meaning}"


def _given(value: str | None, key: str, form: str) -> str:
    if value is None:
        raise ConfigError(f"{key} is not set: give {key}={form}")
    return value


def _checked_judge(path: str, samples: Statistics | ImageSource) -> Judge:
    if isinstance(samples, Statistics):
        raise ConfigError(f"judge={path} needs the images and labels of samples, but they are saved statistics")
    judge = judges.load(path)
    judges.check(judge, samples)
    return judge


def _statistics(
    side: Statistics | ImageSource, network: FeatureNetwork, batch_size: int, given: str, say: Say
) -> Statistics:
    if isinstance(side, Statistics):
        say(f"{given}: saved statistics of {side.num_images} images of {side.source}")
        return side
    say(f"{given}: reading {side.num_images} images")
    return compute(side, network, batch_size)
