"""Running a sampling job on this launch's ranks."""

import dataclasses
import time

import numpy as np
import torch

from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.distributed.agreement import on_rank_zero, together
from dist_diffusion.distributed.group import Group, set_deterministic
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.sampling import cost, exports, npz
from dist_diffusion.sampling.cost import ShardCost
from dist_diffusion.sampling.exports import find_sources, wanted_models
from dist_diffusion.sampling.generate import Generator, make_generator
from dist_diffusion.sampling.job import Job, create_job, find_job, pin_low_res
from dist_diffusion.sampling.low_res import LowRes, check_count, pinned_rows
from dist_diffusion.sampling.merge import merge
from dist_diffusion.sampling.models import Models
from dist_diffusion.sampling.plan import OutputShard, batches, output_shards, share
from dist_diffusion.weights.load import LoadedModel, load_model


def run_job(recipe: SampleRecipe, group: Group, threads: int, console: Console) -> str:
    """Makes the missing shards of a job, each rank its share, and merges them; returns the merged file's path."""
    set_deterministic(True)
    job, notes = on_rank_zero(group, lambda: open_job(recipe, group, threads))
    for note in notes:
        console.say(note)
    torch.set_num_threads(job.threads)
    shards = output_shards(recipe.num_samples, recipe.shard_size)
    missing = on_rank_zero(group, lambda: job.missing(shards))
    console.say(f"{job.out}: {recipe.num_samples} images, {len(missing)} of {len(shards)} shards to make")
    together(group, lambda: make_shards(job, recipe, missing, group, console))
    path = on_rank_zero(group, lambda: merge(job, shards))
    total = on_rank_zero(group, lambda: cost.add_up(job, shards))
    console.say(f"wrote {path}: {total or 'of unknown cost, an earlier version made some of its shards'}")
    return path


def open_job(recipe: SampleRecipe, group: Group, threads: int) -> tuple[Job, list[str]]:
    """The job of recipe.out, gone on with or made once its models and settings are known to work; and notes to say."""
    low_res = open_low_res(recipe)
    job = find_job(recipe, group.device.type)
    if job is None:
        return start_job(recipe, low_res, threads, group.device.type), []
    notes = exports.notes(job.out, job.models, wanted_models(recipe), recipe.ema)
    if job.threads != threads:
        notes.append(f"the job was started with {job.threads} threads a rank: using them, for the same bytes")
    if low_res is not None:
        job = go_on_from(job, recipe, low_res)
    return job, notes


def open_low_res(recipe: SampleRecipe) -> LowRes | None:
    """What the job starts from, enough for all of its images."""
    if recipe.low_res is None:
        return None
    low_res = LowRes(recipe.low_res)
    check_count(low_res, recipe.num_samples)
    return low_res


def start_job(recipe: SampleRecipe, low_res: LowRes | None, threads: int, device: str) -> Job:
    """A new job; a refused one leaves nothing."""
    sources = find_sources(wanted_models(recipe), recipe.ema)
    try_out(recipe, {role: path for role, (_, path) in sources.items()}, low_res)
    pinned = None if low_res is None else pinned_rows(low_res, recipe.num_samples, None)
    return create_job(recipe, sources, threads, device, pinned)


def go_on_from(job: Job, recipe: SampleRecipe, low_res: LowRes) -> Job:
    """A job that has begun, which may have grown, as may what it starts from."""
    pinned = pinned_rows(low_res, recipe.num_samples, job)
    try_out(recipe, {role: job.model_path(role) for role in job.models}, low_res)
    return job if pinned == job.low_res else pin_low_res(job, pinned)


def try_out(recipe: SampleRecipe, paths: dict[str, str], low_res: LowRes | None) -> None:
    """ConfigError where models, settings and low_res do not fit together."""
    models = load_models(paths, torch.device("cpu"))
    make_generator(models, recipe.sampler, recipe.guidance, recipe.seed, "cpu", low_res)


def load_models(paths: dict[str, str], device: torch.device) -> Models:
    """The networks of a job by their roles."""
    return by_role({role: load_model(path, device=device) for role, path in paths.items()})


def by_role(loaded: dict[str, LoadedModel]) -> Models:
    """Networks in their places."""
    return Models(
        loaded["model"], loaded.get("classifier"), loaded.get("uncond_model"), weaker=loaded.get("auto_model")
    )


def make_shards(job: Job, recipe: SampleRecipe, missing: list[OutputShard], group: Group, console: Console) -> None:
    """This rank's share of the missing shards, one after the other."""
    models = load_models({role: job.model_path(role) for role in job.models}, group.device)
    low_res = None if job.low_res is None else LowRes(job.low_res.source)
    generate = make_generator(models, recipe.sampler, recipe.guidance, recipe.seed, group.device, low_res)
    mine = share(missing, group.rank, group.world_size)
    total = sum(len(shard.indices) for shard in mine)
    throughput, done = Throughput(total, 0), 0
    throughput.update(0, time.monotonic())
    with console.progress(total, unit="img") as bar:
        for shard in mine:
            write_shard(job, shard, generate, recipe.batch_size)
            done += len(shard.indices)
            throughput.update(done, time.monotonic())
            rate = throughput.images_per_s * group.world_size
            bar.update(done)
            console.say(f"{done}/{total} images of this rank, {rate:.1f} img/s in all, ETA {human(throughput.eta_s)}")


def write_shard(job: Job, shard: OutputShard, generate: Generator, batch_size: int) -> None:
    """Makes one shard's images and publishes them, after what they cost."""
    images, labels = [], []
    todo = batches(shard, batch_size)
    before, start = dataclasses.replace(generate.evaluations), time.monotonic()
    for batch in todo:
        made, drawn = generate(batch.indices)
        images.append(made[: batch.keep])
        if drawn is not None:
            labels.append(drawn[: batch.keep].astype(np.int64))
    spent = generate.evaluations.since(before)
    cost.publish_shard(job, shard, ShardCost(len(todo) * batch_size, spent, time.monotonic() - start))
    pixels = np.concatenate(images)
    arrays = {"arr_0": npz.Streamed(pixels.shape, pixels.dtype, [pixels])}
    if labels:
        chosen = np.concatenate(labels)
        arrays["arr_1"] = npz.Streamed(chosen.shape, chosen.dtype, [chosen])
    npz.publish_npz(job.shard_path(shard), arrays)
