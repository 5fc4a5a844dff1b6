"""A sampling job's folder: what it was started with, which shards are finished, and the merged result.

OUT/job.json pins the settings; OUT/*.safetensors are the exports that it uses, copied; OUT/shards/ holds finished
shards; OUT/samples_{N}x{H}x{W}x3.npz is the result.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any

from dist_diffusion.config.load import to_dict
from dist_diffusion.config.protected import flatten
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, DataError, StorageError
from dist_diffusion.sampling import npz
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find

FORMAT = 1
JOB = "job.json"
SHARDS = "shards"
MERGED = re.compile(r"samples_(\d+)x\d+x\d+x3\.npz")
FREE = ("out", "num_samples", "model", "low_res", "guidance.classifier", "guidance.uncond_model", "threads")
"""Settings that a rerun may give differently: a job grows, and its models, the images that it starts from and its
threads are pinned by the first start."""

Sources = dict[str, tuple[str, str]]
"""By role (model, classifier, uncond_model): the path that was given, and the export that it names."""


@dataclass(frozen=True)
class PinnedRows:
    """The images of low_res that a job has been asked to use so far."""

    given: str
    source: str
    """The npz."""
    num_images: int
    """The first ones."""
    sha256: str
    """Of their pixels and labels."""


@dataclass(frozen=True)
class Job:
    """What every start of a job shares."""

    out: str
    settings: dict[str, Any]
    """The recipe of the first start, flat."""
    models: dict[str, dict[str, Any]]
    """By role (model, classifier, uncond_model): the path that was given, the copy's file name and its sha256."""
    threads: int
    device: str
    """The kind of device: another kind gives other bytes."""
    low_res: PinnedRows | None
    """Of a super-resolution job."""

    def shard_path(self, shard: OutputShard) -> str:
        """Where a shard lies; its name tells its images, so that a grown job's last shard is another file."""
        name = f"shard-{shard.indices.start:09d}-{shard.indices.stop:09d}.npz"
        return files.join(self.out, SHARDS, name)

    def model_path(self, role: str) -> str:
        """The pinned export of a role."""
        return files.join(self.out, self.models[role]["file"])

    def missing(self, shards: list[OutputShard]) -> list[OutputShard]:
        """The shards that are not there whole."""
        return [shard for shard in shards if not npz.is_whole(self.shard_path(shard), len(shard.indices))]


def samples_name(num_samples: int, height: int, width: int) -> str:
    """The merged file, as the ADM evaluator expects it."""
    return f"samples_{num_samples}x{height}x{width}x3.npz"


def is_job(folder: str) -> bool:
    """Whether the folder is a sample job's."""
    return files.exists(files.join(folder, JOB))


def merged_npz(folder: str) -> str:
    """The merged file of a sample job: the largest, where the job has grown. DataError where it is not finished."""
    found = {int(match[1]): name for name in files.list_names(folder) if (match := MERGED.fullmatch(name))}
    if not found:
        raise DataError(f"sample job {folder} is not finished (no merged npz): run its sample command again")
    return files.join(folder, found[max(found)])


def find_job(recipe: SampleRecipe, device: str) -> Job | None:
    """The job that recipe.out holds, checked against the recipe; None where it holds none."""
    assert recipe.out is not None
    if not is_job(recipe.out):
        return None
    job = _read(recipe.out)
    _compare(job, recipe, device)
    return job


def find_sources(recipe: SampleRecipe) -> Sources:
    """The exports of every role that the guidance mode uses; other paths are not looked at."""
    return {role: (given, find(given, _average(recipe, role))) for role, given in wanted_models(recipe).items()}


def create_job(recipe: SampleRecipe, sources: Sources, threads: int, device: str, low_res: PinnedRows | None) -> Job:
    """Starts a job: copies its exports, then pins its settings. Call it once the settings are known to work."""
    assert recipe.out is not None
    models = {}
    for role, (given, source) in sources.items():
        name = f"{role}.safetensors"
        digest = publish.copy(source, files.join(recipe.out, name))
        models[role] = {"given": given, "source": source, "file": name, "sha256": digest}
    job = Job(recipe.out, settings_of(recipe), models, threads, device, low_res)
    _write(job)
    return job


def pin_low_res(job: Job, low_res: PinnedRows) -> Job:
    """The job with more images, or the same ones in another place, to start from."""
    job = dataclasses.replace(job, low_res=low_res)
    _write(job)
    return job


def _write(job: Job) -> None:
    content = {key: value for key, value in dataclasses.asdict(job).items() if key != "out"}
    publish.write_json(files.join(job.out, JOB), {"format": FORMAT, **content})


def wanted_models(recipe: SampleRecipe) -> dict[str, str]:
    """The path that the recipe gives for each role of its guidance mode."""
    mode, guidance = recipe.guidance.mode, recipe.guidance
    assert recipe.model is not None
    roles = {"model": recipe.model}
    if mode in ("classifier", "both"):
        assert guidance.classifier is not None
        roles["classifier"] = guidance.classifier
    if mode in ("cfg", "both") and guidance.uncond_model is not None:
        roles["uncond_model"] = guidance.uncond_model
    return roles


def _average(recipe: SampleRecipe, role: str) -> str | None:
    return recipe.ema if role == "model" else None


def settings_of(recipe: SampleRecipe) -> dict[str, Any]:
    """The recipe as dotted keys, without those that a rerun may change."""
    return {key: value for key, value in flatten(to_dict(recipe)).items() if key not in FREE}


def _read(out: str) -> Job:
    path = files.join(out, JOB)
    content = files.read_json(path)
    if content.get("format") != FORMAT:
        raise StorageError(f"{path} is of format {content.get('format')}; this version reads format {FORMAT}")
    # Jobs of versions without super-resolution say nothing of it.
    low_res = content.get("low_res")
    pinned = None if low_res is None else PinnedRows(**low_res)
    job = Job(out, content["settings"], content["models"], content["threads"], content["device"], pinned)
    for role, model in job.models.items():
        copy = files.join(out, model["file"])
        if not files.exists(copy) or files.sha256(copy) != model["sha256"]:
            raise StorageError(f"{copy} is missing or damaged: restore it, or sample into another folder ({role})")
    return job


def _compare(job: Job, recipe: SampleRecipe, device: str) -> None:
    now = {**settings_of(recipe), "device": device}
    before = {**job.settings, "device": job.device}
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    roles = wanted_models(recipe)
    changed += [f"{role}: none -> {given}" for role, given in roles.items() if role not in job.models]
    changed += [f"{role}: {model['given']} -> none" for role, model in job.models.items() if role not in roles]
    if (recipe.low_res is None) != (job.low_res is None):
        changed.append(f"low_res: {job.low_res and job.low_res.given} -> {recipe.low_res}")
    if changed:
        raise ConfigError(
            f"out={job.out} holds a job with other settings ({'; '.join(changed)}): give the same ones, or another out"
        )


def model_notes(job: Job, recipe: SampleRecipe) -> list[str]:
    """What to say where a given model is not the pinned one any more. ConfigError where it is another run's."""
    notes = []
    for role, given in wanted_models(recipe).items():
        pinned = job.models[role]
        try:
            source = find(given, _average(recipe, role))
        except (CheckpointError, StorageError):
            notes.append(f"{role} {given} cannot be read any more; the job's own copy is used")
            continue
        if source == pinned["source"] or files.sha256(source) == pinned["sha256"]:
            continue
        if os.path.abspath(given) != os.path.abspath(pinned["given"]):
            raise ConfigError(
                f"out={job.out} holds a job of {role} {pinned['given']}, not {given}: give that, or another out"
            )
        notes.append(f"{role} {given} has a newer commit; this job stays with {pinned['source']}")
    return notes
