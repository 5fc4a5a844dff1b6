"""A save and a resume as the training loop makes them, on one rank of several, and what they are compared with."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist

from benchmarks.setting import our_engine, pieces, random_weights, recipe_of, task_batch
from dist_diffusion.config.schema import CheckpointOptions, DiffusionRecipe
from dist_diffusion.distributed.agreement import broadcast, gather
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine import slices
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.engine.layout import local_shards, torch_optimizer
from dist_diffusion.errors import InternalError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.storage import committed
from dist_diffusion.tasks.build import build as build_task

NETWORK = UNetOptions(channels=96, channel_mult=(1, 2, 4), attention_resolutions=(16, 8), num_head_channels=32)
"""41 M parameters."""
KEPT = "kept"
"""Name of DeepSpeed's checkpoint that is loaded."""

PIECE = 2**20
"""Bytes read at a time."""

Taken = tuple[float, float]
"""Seconds that a save blocks, and until it is done; of the slowest rank."""


class Saving:
    """An engine of the network on this rank, after a step, and the ways to save and restore it."""

    def __init__(self, stage: int, group: Group, folder: Path) -> None:
        self.group, self.folder, self.step = group, folder, 0
        self.engine = our_engine(self.recipe(stage), random_weights(NETWORK), group)
        self.advance()
        attempt = broadcast(group, committed.new_attempt())
        self.ours = Checkpointer(str(folder / "ours"), self.engine.recipe, group, attempt, print, lambda: True)
        averages = sum(values.nbytes for average in self.engine.ema.values.values() for values in average)
        size = averages + sum(tensor.nbytes for tensor in held(self.engine).values())
        self.source, self.warm = (torch.ones(size, dtype=torch.uint8) for _ in range(2))

    def recipe(self, stage: int) -> DiffusionRecipe:
        """One average, exported; one commit kept."""
        recipe = recipe_of(NETWORK, "fp32")
        engine = replace(recipe.engine, zero_stage=stage)
        return replace(recipe, engine=engine, checkpoint=CheckpointOptions(keep=1))

    def advance(self) -> None:
        """A step on one image, so that there are moments to save."""
        task, batch = build_task(self.engine.recipe, self.group.device), pieces(task_batch(0), range(1), 1)[0]
        self.engine.step(0, 1, lambda i: task.loss(self.engine, batch).loss)

    @property
    def commit(self) -> Path:
        """Ours, the one that is kept."""
        (found,) = committed.scan(str(self.folder / "ours"))
        return Path(found.path)

    def slowest(self, *seconds: float) -> list[float]:
        """Of all ranks, for each."""
        return [max(values) for values in zip(*gather(self.group, seconds), strict=True)]

    def timed(self, *works: Callable[[], object]) -> list[float]:
        """Seconds from the moment that all ranks begin to the end of each, one after the other."""
        dist.barrier(self.group.control)
        start, ends = time.perf_counter(), []
        for work in works:
            work()
            ends.append(time.perf_counter() - start)
        return self.slowest(*ends)

    def save(self) -> Taken:
        """Ours, as every save but a start's first."""
        return self._save(self.ours)

    def first_save(self) -> Taken:
        """Ours, with its host memory to be made."""
        return self._save(self.ours.of_folder(self.ours.folder))

    def _save(self, checkpointer: Checkpointer) -> Taken:
        self.step += 1
        (blocked,) = self.timed(lambda: checkpointer.save(self.engine, self.step, {}, None))
        outcome = checkpointer.settle()
        if outcome.error:
            raise InternalError(f"the save failed: {outcome.error}")
        return blocked, blocked + outcome.seconds

    def copy_and_write(self) -> Taken:
        """Nothing but the copy to warm host memory, and writing and syncing as many bytes as ours does."""
        path = self.folder / f"bare-{self.group.rank}"
        shares = self.shares_of_commit()
        (blocked,) = self.timed(lambda: self.warm.copy_(self.source))
        (written,) = self.timed(lambda: bare_write(path, self.warm, shares[self.group.rank]))
        path.unlink()
        return blocked, blocked + written

    def shares_of_commit(self) -> list[int]:
        """Bytes that each rank writes of a commit: its slices, and rank 0 the export too."""
        sizes = {path.name: path.stat().st_size for path in self.commit.glob("*.safetensors")}
        of_ranks = [sizes.pop(slices.rank_file(rank)) for rank in range(self.group.world_size)]
        of_ranks[0] += sum(sizes.values())
        return of_ranks

    def save_by_deepspeed(self, tag: str = "saved") -> Taken:
        """Its own, which blocks to the end and syncs nothing; synced afterwards, to be as safe as ours."""
        folder = self.folder / "deepspeed"
        if self.group.rank == 0:
            shutil.rmtree(folder / tag, ignore_errors=True)

        def sync() -> None:
            if self.group.rank == 0:
                sync_all(folder / tag)

        save = partial(self.engine.deepspeed.save_checkpoint, str(folder), tag=tag, save_latest=False)
        blocked, synced = self.timed(save, sync)
        return blocked, synced

    def resume(self) -> float:
        """Ours: find the newest commit, verify every byte of it, fill the engine."""

        def work() -> None:
            commit, damaged = self.ours.newest()
            assert commit is not None and not damaged
            self.ours.restore(self.engine, commit.path, commit.marker)

        return self.timed(work)[0]

    def resume_by_deepspeed(self) -> float:
        """Its own, which verifies nothing."""
        folder = str(self.folder / "deepspeed")
        return self.timed(lambda: self.engine.deepspeed.load_checkpoint(folder, tag=KEPT))[0]

    def bare_read(self) -> float:
        """Every file of our commit once, shared out as verifying is."""
        mine = self.files_to_verify()
        return self.timed(partial(bare_read, mine, self.warm))[0]

    def bare_hash(self) -> float:
        """The same, and hashed as verifying does."""
        mine = self.files_to_verify()
        return self.timed(partial(bare_hash, mine))[0]

    def files_to_verify(self) -> list[Path]:
        """This rank's share of the commit's."""
        return sorted(self.commit.glob("*.safetensors"))[self.group.rank :: self.group.world_size]

    def check_restored(self, resume: Callable[[], float]) -> None:
        """InternalError unless it brings this rank's masters and moments back bit for bit."""
        before = {name: tensor.clone() for name, tensor in held(self.engine).items()}
        for tensor in held(self.engine).values():
            tensor.zero_()
        resume()
        for name, tensor in held(self.engine).items():
            if not torch.equal(tensor, before[name]):
                raise InternalError(f"{name} is not what was saved")


def held(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """The masters and moments of this rank, where the engine keeps them."""
    state, shards = torch_optimizer(engine.deepspeed).state, local_shards(engine.deepspeed)
    return {
        f"{i}.{key}": tensor
        for i, shard in enumerate(shards)
        for key, tensor in slices.state_tensors(shard, state[shard.master]).items()
    }


def bare_write(path: Path, content: torch.Tensor, num_bytes: int) -> None:
    """So many bytes, over and over the content, to the disk."""
    view = content.numpy().data
    with path.open("wb", buffering=0) as stream:
        while num_bytes:
            num_bytes -= stream.write(view[:num_bytes])
        os.fsync(stream.fileno())


def bare_read(paths: list[Path], into: torch.Tensor) -> None:
    """Files, over and over into the same memory."""
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(into.numpy().data):
                pass


def bare_hash(paths: list[Path]) -> None:
    """Files, read piece by piece into the same memory, their digests made."""
    view = memoryview(bytearray(PIECE))
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(view):
                digest.update(view[:count])


def sync_all(folder: Path) -> None:
    """All files of a folder to the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def num_bytes(folder: Path) -> int:
    """Of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())
