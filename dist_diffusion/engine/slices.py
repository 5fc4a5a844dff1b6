"""Portable slices: each rank writes what it owns, and any layout reads back the slices that it needs."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dist_diffusion.engine.ema import ShardedEma
from dist_diffusion.engine.layout import Segment, Shard, flat, torch_optimizer
from dist_diffusion.errors import CheckpointError, NonFiniteError
from dist_diffusion.storage import files

MASTER = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
PIECE = 1 << 20
"""Elements that are looked at together."""


@dataclass(frozen=True)
class Snapshot:
    """Host copies of everything that one rank must write: training may go on while they are written."""

    segments: list[list[Segment]]
    """Of each shard."""
    tensors: dict[str, torch.Tensor]
    """Flat fp32 tensors by "SHARD.KEY"."""


def rank_file(rank: int) -> str:
    """The file of one rank's slices."""
    return f"rank-{rank:05d}.safetensors"


def snapshot(engine: Any, ema: ShardedEma, buffers: dict[str, torch.Tensor]) -> Snapshot:
    """Copies masters, moments and averages of the owned shards to host memory, into `buffers`, made where there are
    none: the same again for the next snapshot, once this one is written.
    """
    state = torch_optimizer(engine).state
    for i, shard in enumerate(ema.shards):
        held = state_tensors(shard, state[shard.master])
        held |= {key: values[i] for key, values in ema.values.items()}
        for key, tensor in held.items():
            name = f"{i}.{key}"
            if name not in buffers:
                # Of pinned memory a GPU's copy takes a fraction of the time.
                buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffers[name].copy_(tensor, non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Snapshot([shard.segments for shard in ema.shards], buffers)


def state_tensors(shard: Shard, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Flat views of a shard's master weights and moments."""
    return {MASTER: flat(shard.master), **{key: flat(state[key]) for key in MOMENTS}}


def refuse_non_finite(snap: Snapshot) -> None:
    """NonFiniteError names the parameters: a state from which no step could be made is never saved."""
    for key, tensor in snap.tensors.items():
        # Summed in double precision nothing overflows that is finite; in pieces, for it is converted before.
        if not all(math.isfinite(piece.sum(dtype=torch.float64).item()) for piece in tensor.split(PIECE)):
            shard, _, what = key.partition(".")
            pieces = [(s.name, tensor[s.offset : s.offset + s.numel]) for s in snap.segments[int(shard)]]
            wrong = [name for name, piece in pieces if not piece.isfinite().all()]
            if wrong:  # else it is the padding, which is of no parameter
                raise NonFiniteError(f"{what} of {', '.join(wrong)} is not finite")


def write(snap: Snapshot, path: str) -> None:
    """Writes and syncs one rank's file."""
    table = [[dataclasses.astuple(segment) for segment in segments] for segments in snap.segments]
    with files.failures("write", path):
        save_file(snap.tensors, path, metadata={"segments": json.dumps(table)})
        files.share(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Slices:
    """Random access, by mapped memory, to the slices in the rank files of a commit; files are opened when needed."""

    def __init__(self, folder: str, ranks: Iterable[int]) -> None:
        self.folder = folder
        self._unopened = [os.path.join(folder, rank_file(rank)) for rank in ranks]
        self._where: dict[str, list[tuple[Segment, str, Any]]] = {}

    def fill(self, out: torch.Tensor, name: str, key: str, start: int) -> None:
        """Copies elements start.. of parameter `name`'s `key` (fp32, exp_avg, ema_0, ...) into the flat `out`."""
        todo, used = out.numel(), 0
        while todo:
            known = self._where.get(name, [])
            for segment, prefix, stream in known[used:]:
                first, last = max(segment.start, start), min(segment.start + segment.numel, start + out.numel())
                if first < last:
                    offset = segment.offset + first - segment.start
                    piece = stream.get_slice(f"{prefix}.{key}")[offset : offset + last - first]
                    out[first - start : last - start].copy_(piece)
                    todo -= last - first
            used = len(known)
            if todo and not self._unopened:
                raise CheckpointError(f"{self.folder} lacks {todo} of {out.numel()} elements of {name}'s {key}")
            if todo:
                self._open(self._unopened.pop(0))

    def full(self, name: str, key: str, shape: list[int]) -> torch.Tensor:
        """A whole parameter."""
        out = torch.empty(math.prod(shape))
        self.fill(out, name, key, 0)
        return out.view(shape)

    def _open(self, path: str) -> None:
        stream = safe_open(path, framework="pt")
        for i, segments in enumerate(json.loads(stream.metadata()["segments"])):
            for values in segments:
                segment = Segment(*values)
                self._where.setdefault(segment.name, []).append((segment, str(i), stream))
