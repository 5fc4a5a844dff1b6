"""From finished shards to the one npz of a job, one shard in memory at a time."""

from collections.abc import Iterator

import numpy as np

from dist_diffusion.sampling import npz
from dist_diffusion.sampling.job import Job, samples_name
from dist_diffusion.sampling.npz_images import IMAGES, LABELS, arrays, read_array
from dist_diffusion.sampling.plan import OutputShard
from dist_diffusion.storage import files


def merge(job: Job, shards: list[OutputShard]) -> str:
    """Writes samples_{N}x{H}x{W}x3.npz (arr_0 uint8 NHWC, arr_1 int64 labels where there are any); returns its path."""
    num = shards[-1].indices.stop
    first = job.shard_path(shards[0])
    image_shape = read_array(first, IMAGES).shape[1:]

    def pieces(array: str) -> Iterator[np.ndarray]:
        for shard in shards:
            yield read_array(job.shard_path(shard), array)

    content = {IMAGES: npz.Streamed((num, *image_shape), np.dtype(np.uint8), pieces(IMAGES))}
    if LABELS in arrays(first):
        content[LABELS] = npz.Streamed((num,), np.dtype(np.int64), pieces(LABELS))
    path = files.join(job.out, samples_name(num, image_shape[0], image_shape[1]))
    npz.publish_npz(path, content)
    return path
