"""A classifier as judge: how many samples show what their label asked for, and how surely it sees classes."""

from dataclasses import dataclass

import numpy as np
import torch

from dist_diffusion.config.schema import ClassifierRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation import metrics
from dist_diffusion.evaluation.images import ImageSource
from dist_diffusion.sampling.pixels import from_uint8
from dist_diffusion.weights.load import load_model


@dataclass(frozen=True)
class Judge:
    """A frozen classifier of square images: (x float32 NCHW in [-1, 1], model_time (N,)) to logits (N, num_classes)."""

    path: str
    module: torch.nn.Module
    image_size: int
    num_classes: int


def load(path: str) -> Judge:
    """The classifier of a run or export. ConfigError where it is another kind of model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(path, ema=None, device=device)
    if not isinstance(loaded.recipe, ClassifierRecipe):
        raise ConfigError(f"judge={path} is a model of task {loaded.recipe.task}, not a classifier")
    if loaded.recipe.data.latents:
        raise ConfigError(f"judge={path} is a classifier of latents, not of images")
    options = loaded.recipe.model
    assert options.image_size and options.num_classes
    return Judge(path, loaded.module, options.image_size, options.num_classes)


def check(judge: Judge, samples: ImageSource) -> np.ndarray:
    """The samples' labels. ConfigError where the judge cannot tell whether they are met."""
    if samples.labels is None:
        raise ConfigError(f"judge={judge.path} needs labels, but samples={samples.path} has none (arr_1)")
    if samples.image_size != judge.image_size:
        raise ConfigError(
            f"judge={judge.path} is a classifier of {judge.image_size} px images, but samples={samples.path} "
            f"are {samples.image_size} px"
        )
    low, high = samples.labels.min(), samples.labels.max()
    if low < 0 or high >= judge.num_classes:
        raise ConfigError(
            f"judge={judge.path} knows the labels 0 to {judge.num_classes - 1}, but samples={samples.path} "
            f"has labels from {low} to {high}"
        )
    return samples.labels


@torch.inference_mode()
def judged(judge: Judge, samples: ImageSource, batch_size: int) -> dict[str, float]:
    """`label_agreement`: the share of samples whose most probable class, at model time 0 (no noise), is their label.
    `judge_score`: the score (see metrics.score) of the judge's own logits, at most its number of classes.
    """
    labels = check(judge, samples)
    logits = np.concatenate([_logits(judge, images) for images in samples.batches(batch_size)])
    score, _ = metrics.score(logits, 1, samples.path)
    return {"label_agreement": float((logits.argmax(axis=1) == labels).mean()), "judge_score": score}


def _logits(judge: Judge, images: np.ndarray) -> np.ndarray:
    device = next(judge.module.parameters()).device
    x = from_uint8(images, device)
    logits: np.ndarray = judge.module(x, torch.zeros(len(x), device=device)).float().cpu().numpy()
    return logits
