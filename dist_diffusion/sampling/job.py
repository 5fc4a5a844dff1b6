"""A sampling job's folder: what it was started with, which shards are finished, and the merged result.

OUT/job.json pins the settings; OUT/*.safetensors are the exports that it uses, copied; OUT/shards/ holds finished
shards and OUT/cost/ what each cost; OUT/samples_{N}x{H}x{W}x3.npz is the result.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from dist_diffusion.config.load import to_dict
from dist_diffusion.config.protected import flatten
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.diffusion.spacing import spacing_of
from dist_diffusion.errors import ConfigError, DataError, StorageError
from dist_diffusion.sampling import exports, npz
from dist_diffusion.sampling.exports import Pinned, Sources, wanted_models
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files, publish

FORMAT = 1
JOB = "job.json"
SHARDS = "shards"
COST = "cost"
MERGED = re.compile(r"samples_(\d+)x\d+x\d+x3\.npz")
FREE = (
    *("out", "num_samples", "model", "low_res", "threads"),
    *(f"guidance.{role}" for role in ("classifier", "uncond_model", "auto_model")),
)
"""Settings that a rerun may give differently: a job grows, and its models, the images that it starts from and its
threads are pinned by the first start."""


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
    models: Pinned
    threads: int
    device: str
    """The kind of device: another kind gives other bytes."""
    low_res: PinnedRows | None
    """Of a super-resolution job."""

    def shard_path(self, shard: OutputShard) -> str:
        """Where a shard lies; its name tells its images, so that a grown job's last shard is another file."""
        return files.join(self.out, SHARDS, f"{shard_name(shard)}.npz")

    def cost_path(self, shard: OutputShard) -> str:
        """Where its cost lies."""
        return files.join(self.out, COST, f"{shard_name(shard)}.json")

    def model_path(self, role: str) -> str:
        """The pinned export of a role."""
        return files.join(self.out, self.models[role]["file"])

    def missing(self, shards: list[OutputShard]) -> list[OutputShard]:
        """The shards that are not there whole."""
        return [shard for shard in shards if not npz.is_whole(self.shard_path(shard), len(shard.indices))]


def shard_name(shard: OutputShard) -> str:
    """Without an ending."""
    return f"shard-{shard.indices.start:09d}-{shard.indices.stop:09d}"


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
    """The job that recipe.out holds, whole and checked against the recipe; None where it holds none."""
    job = look_up(recipe, device)
    if job is not None:
        exports.check_copies(job.out, job.models)
    return job


def look_up(recipe: SampleRecipe, device: str) -> Job | None:
    """The same without reading its exports."""
    assert recipe.out is not None
    if not is_job(recipe.out):
        return None
    job = _read(recipe.out)
    _compare(job, recipe, device)
    return job


def create_job(recipe: SampleRecipe, sources: Sources, threads: int, device: str, low_res: PinnedRows | None) -> Job:
    """Starts a job: copies its exports, then pins its settings. Call it once the settings are known to work."""
    assert recipe.out is not None
    models = exports.pin(recipe.out, sources)
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


def settings_of(recipe: SampleRecipe) -> dict[str, Any]:
    """The recipe as dotted keys, without those that a rerun may change; its values as job.json gives them back."""
    # JSON has no infinity, which guidance.interval may end with: it stands there as a word.
    content = json.loads(json.dumps(to_dict(recipe)), parse_constant=str)
    # What suits a sampler may change with the code; the path of a job that has begun may not.
    content["sampler"]["spacing"] = spacing_of(recipe.sampler)
    return {key: value for key, value in flatten(content).items() if key not in FREE}


def _read(out: str) -> Job:
    path = files.join(out, JOB)
    content = files.read_json(path)
    if content.get("format") != FORMAT:
        raise StorageError(f"{path} is of format {content.get('format')}; this version reads format {FORMAT}")
    # Jobs of versions without super-resolution say nothing of it.
    low_res = content.get("low_res")
    pinned = None if low_res is None else PinnedRows(**low_res)
    return Job(out, content["settings"], content["models"], content["threads"], content["device"], pinned)


def _compare(job: Job, recipe: SampleRecipe, device: str) -> None:
    now = {**settings_of(recipe), "device": device}
    # What a job of an earlier version does not know was as it is by default.
    before = {**settings_of(SampleRecipe()), **job.settings, "device": job.device}
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
