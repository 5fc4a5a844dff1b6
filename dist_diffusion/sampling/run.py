"""Running a sampling job on this launch's ranks."""

import time

import numpy as np
import torch

from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.diffusion.options import GuidanceOptions
from dist_diffusion.distributed.agreement import on_rank_zero, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.sampling import npz
from dist_diffusion.sampling.generate import Generate, Models, make_generator
from dist_diffusion.sampling.job import Job, open_job
from dist_diffusion.sampling.merge import merge
from dist_diffusion.sampling.plan import OutputShard, batches, output_shards, share
from dist_diffusion.weights.load import LoadedModel, load_model


def run_job(recipe: SampleRecipe, group: Group, threads: int, console: Console) -> str:
    """Makes the missing shards of a job, each rank its share, and merges them; returns the merged file's path."""
    notes: list[str] = []
    job, notes = on_rank_zero(group, lambda: (open_job(recipe, threads, notes), notes))
    for note in notes:
        console.say(note)
    if job.threads != threads:
        console.say(f"the job was started with {job.threads} threads a rank: using them, for the same bytes")
    torch.set_num_threads(job.threads)
    shards = output_shards(recipe.num_samples, recipe.shard_size)
    missing = on_rank_zero(group, lambda: job.missing(shards))
    console.say(f"{job.out}: {recipe.num_samples} images, {len(missing)} of {len(shards)} shards to make")
    together(group, lambda: make_shards(job, recipe, missing, group, console))
    path = on_rank_zero(group, lambda: merge(job, shards))
    console.say(f"wrote {path}")
    return path


def load_models(job: Job, device: torch.device) -> Models:
    """The pinned exports of a job."""

    def load(role: str) -> LoadedModel | None:
        path = job.model_path(role)
        return None if path is None else load_model(path, device=device)

    model = load("model")
    assert model is not None
    return Models(model, load("classifier"), load("uncond_model"))


def make_shards(job: Job, recipe: SampleRecipe, missing: list[OutputShard], group: Group, console: Console) -> None:
    """This rank's share of the missing shards, one after the other."""
    guidance: GuidanceOptions = recipe.guidance
    generate = make_generator(load_models(job, group.device), recipe.sampler, guidance, recipe.seed, group.device)
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


def write_shard(job: Job, shard: OutputShard, generate: Generate, batch_size: int) -> None:
    """Makes one shard's images and publishes them."""
    images, labels = [], []
    for batch in batches(shard, batch_size):
        made, drawn = generate(batch.indices)
        images.append(made[: batch.keep])
        if drawn is not None:
            labels.append(drawn[: batch.keep].astype(np.int64))
    pixels = np.concatenate(images)
    arrays = {"arr_0": npz.Streamed(pixels.shape, pixels.dtype, [pixels])}
    if labels:
        chosen = np.concatenate(labels)
        arrays["arr_1"] = npz.Streamed(chosen.shape, chosen.dtype, [chosen])
    npz.publish_npz(job.shard_path(shard), arrays)
