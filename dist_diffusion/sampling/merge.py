"""From finished shards to the one npz of a job, one shard in memory at a time."""

from collections.abc import Iterator

import numpy as np

from dist_diffusion.sampling import npz
from dist_diffusion.sampling.job import Job, samples_name
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files


def read_shard(path: str, array: str) -> np.ndarray:
    """One array of a shard."""
    with files.open_read(path) as stream, np.load(stream, allow_pickle=False) as content:
        return content[array]


def merge(job: Job, shards: list[OutputShard]) -> str:
    """Writes samples_{N}x{H}x{W}x3.npz (arr_0 uint8 NHWC, arr_1 int64 labels where there are any); returns its path."""
    num = shards[-1].indices.stop
    first = job.shard_path(shards[0])
    image_shape = read_shard(first, "arr_0").shape[1:]

    def pieces(array: str) -> Iterator[np.ndarray]:
        for shard in shards:
            yield read_shard(job.shard_path(shard), array)

    arrays = {"arr_0": npz.Streamed((num, *image_shape), np.dtype(np.uint8), pieces("arr_0"))}
    if "arr_1" in shard_arrays(first):
        arrays["arr_1"] = npz.Streamed((num,), np.dtype(np.int64), pieces("arr_1"))
    path = files.join(job.out, samples_name(num, image_shape[0], image_shape[1]))
    npz.publish_npz(path, arrays)
    return path


def shard_arrays(path: str) -> list[str]:
    """The names of a shard's arrays."""
    with files.open_read(path) as stream, np.load(stream, allow_pickle=False) as content:
        return list(content.files)
