"""A sampling job's folder: what it was started with, which shards are finished, and the merged result.

OUT/job.json pins the settings; OUT/*.safetensors are the exports that it uses, copied; OUT/shards/ holds finished
shards; OUT/samples_{N}x{H}x{W}x3.npz is the result.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.errors import ConfigError, StorageError
from dist_diffusion.sampling import npz
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find

FORMAT = 1
JOB = "job.json"
SHARDS = "shards"
FREE = ("out", "num_samples", "model", "ema", "guidance.classifier", "guidance.uncond_model", "threads")
"""Settings that a rerun may give differently: a job grows, and its models and threads are pinned by the first start."""


@dataclass(frozen=True)
class Job:
    """What every start of a job shares."""

    out: str
    settings: dict[str, Any]
    """The recipe of the first start, flat."""
    models: dict[str, dict[str, Any]]
    """By role (model, classifier, uncond_model): the path that was given, the copy's file name and its sha256."""
    threads: int

    def shard_path(self, shard: OutputShard) -> str:
        """Where a shard lies; its name tells its images, so that a grown job's last shard is another file."""
        name = f"shard-{shard.indices.start:09d}-{shard.indices.stop:09d}.npz"
        return files.join(self.out, SHARDS, name)

    def model_path(self, role: str) -> str | None:
        """The pinned export of a role, or None where the mode uses none."""
        return files.join(self.out, self.models[role]["file"]) if role in self.models else None

    def missing(self, shards: list[OutputShard]) -> list[OutputShard]:
        """The shards that are not there whole."""
        return [shard for shard in shards if not npz.is_whole(self.shard_path(shard))]


def samples_name(num_samples: int, height: int, width: int) -> str:
    """The merged file, as the ADM evaluator expects it."""
    return f"samples_{num_samples}x{height}x{width}x3.npz"


def open_job(recipe: SampleRecipe, threads: int, notes: list[str]) -> Job:
    """Starts a job in recipe.out, or goes on with the one that is there. What the user should know goes to `notes`."""
    assert recipe.out is not None
    path = files.join(recipe.out, JOB)
    if files.exists(path):
        job = _read(recipe.out)
        _compare(job, recipe)
        notes += _model_notes(job, recipe)
        return job
    return _create(recipe, threads, path)


def wanted_models(recipe: SampleRecipe) -> dict[str, str]:
    """The path of each role that the guidance mode uses; others are not looked at."""
    mode, guidance = recipe.guidance.mode, recipe.guidance
    assert recipe.model is not None
    roles = {"model": recipe.model}
    if mode in ("classifier", "both"):
        assert guidance.classifier is not None
        roles["classifier"] = guidance.classifier
    if mode in ("cfg", "both") and guidance.uncond_model is not None:
        roles["uncond_model"] = guidance.uncond_model
    return roles


def _create(recipe: SampleRecipe, threads: int, path: str) -> Job:
    assert recipe.out is not None
    models = {}
    for role, given in wanted_models(recipe).items():
        source = find(given, recipe.ema if role == "model" else None)
        name = f"{role}.safetensors"
        publish.write_bytes(files.join(recipe.out, name), files.read_bytes(source))
        models[role] = {"given": given, "source": source, "file": name, "sha256": files.sha256(source)}
    job = Job(recipe.out, settings_of(recipe), models, threads)
    content = {"format": FORMAT, "settings": job.settings, "models": models, "threads": threads}
    publish.write_json(path, content)
    return job


def settings_of(recipe: SampleRecipe) -> dict[str, Any]:
    """The recipe as dotted keys, without those that a rerun may change."""
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(recipe).items():
        flat.update({f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value})
    return {key: value for key, value in flat.items() if key not in FREE}


def _read(out: str) -> Job:
    content = files.read_json(files.join(out, JOB))
    if content.get("format") != FORMAT:
        raise StorageError(f"{out}/{JOB} is of format {content.get('format')}; this version reads format {FORMAT}")
    job = Job(out, content["settings"], content["models"], content["threads"])
    for role, model in job.models.items():
        copy = files.join(out, model["file"])
        if not files.exists(copy) or files.sha256(copy) != model["sha256"]:
            raise StorageError(f"{copy} is missing or damaged: restore it, or sample into another folder ({role})")
    return job


def _compare(job: Job, recipe: SampleRecipe) -> None:
    now = settings_of(recipe)
    changed = [f"{key}: {job.settings.get(key)} -> {now[key]}" for key in now if job.settings.get(key) != now[key]]
    roles = wanted_models(recipe)
    changed += [f"no {role} was given before" for role in roles if role not in job.models]
    if changed:
        raise ConfigError(
            f"out={job.out} holds a job with other settings ({'; '.join(changed)}): give the same ones, or another out"
        )


def _model_notes(job: Job, recipe: SampleRecipe) -> list[str]:
    """What to say where a given model is not the pinned one any more. ConfigError where it is another run's."""
    notes = []
    for role, given in wanted_models(recipe).items():
        pinned = job.models[role]
        if os.path.abspath(given) != os.path.abspath(pinned["given"]):
            source = find(given, recipe.ema if role == "model" else None)
            if files.sha256(source) != pinned["sha256"]:
                raise ConfigError(
                    f"out={job.out} holds a job of {role} {pinned['given']}, not {given}: give that, or another out"
                )
            continue
        if not files.exists(given.partition("@")[0]):
            notes.append(f"{role} {given} is gone; the job's own copy is used")
        elif find(given, recipe.ema if role == "model" else None) != pinned["source"]:
            notes.append(f"{role} {given} has a newer commit; this job stays with {pinned['source']}")
    return notes
