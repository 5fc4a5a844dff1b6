"""Training on latents, from arrays to a commit; and that what makes images of it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from support import Launcher, column, make_shards, train_arguments


def test_a_model_of_latents_is_trained_and_not_taken_for_one_of_images(
    train: Callable[..., list[dict]], launcher: Launcher, workplace: Path
) -> None:
    source = workplace / "latent-source"
    source.mkdir()
    np.save(source / "latents.npy", np.random.default_rng(0).normal(size=(96, 4, 8, 8)).astype(np.float32))
    np.save(source / "labels.npy", np.arange(96) % 3)
    make_shards(source, workplace / "latents")
    of_latents = [f"data.shards={workplace / 'latents'}", "data.random_flip=false"]
    taken = ["data.latents=true", "data.latent_scale=0.18", "model.in_channels=4", "train.steps=4"]
    found = train("of-latents", 2, *of_latents, *taken)
    assert column(found, "step") == [1, 2, 3, 4] and all(row["loss"] > 0 for row in found)
    _, err = launcher.run(1, *train_arguments(workplace, "latents-as-images"), *of_latents, code=2)
    assert "holds latents: set data.latents=true" in err
    model, out = f"model={workplace / 'of-latents'}", f"out={workplace / 'latent-samples'}"
    _, err = launcher.run(1, "sample", "configs/demo/sample.yaml", model, out, "num_samples=1", code=2)
    assert "was trained on latents" in err
