"""The smaller images that a super-resolution job starts from: image i and its label make sample i."""

from collections.abc import Sequence

import numpy as np
import torch

from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.models.options import SuperResolutionOptions, UNetOptions
from dist_diffusion.sampling.job import Job, PinnedRows, is_job, merged_npz
from dist_diffusion.sampling.npz_images import NpzImages
from dist_diffusion.sampling.pixels import from_uint8
from dist_diffusion.storage import files


class LowRes:
    """Images by their index. A local npz that is not compressed is mapped, not read: 50,000 of 128 px are 2.4 GB."""

    def __init__(self, path: str) -> None:
        """`path` is an npz as ADM's, or the folder of a finished sample job. DataError names what is wrong with it."""
        self.given = path
        self.source = NpzImages(npz_of(path))
        self._pixels = self.source.pixels()

    def images(self, indices: Sequence[int], device: torch.device | str) -> torch.Tensor:
        """Float32 NCHW in [-1, 1]."""
        return from_uint8(self._pixels[self._rows(indices)], device)

    def labels(self, indices: Sequence[int]) -> np.ndarray | None:
        """Int64 (N,), or None where the source has none."""
        return None if self.source.labels is None else self.source.labels[self._rows(indices)]

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        """The last batch's filler may go past the last image; it is dropped, so any image will do."""
        return np.asarray(indices) % self.source.num_images


def npz_of(path: str) -> str:
    """The npz that low_res names: itself, or a sample job's. DataError where the path is neither."""
    if not files.is_dir(path):
        return path
    if not is_job(path):
        raise DataError(f"low_res={path} is neither an npz nor the folder of a sample job")
    return merged_npz(path)


def low_res_size(options: UNetOptions) -> int | None:
    """The size of the images that a model starts from; None where it starts from noise alone."""
    return options.low_res_size if isinstance(options, SuperResolutionOptions) else None


def check_low_res(model_path: str, options: UNetOptions, num_classes: int, low_res: LowRes | None) -> None:
    """ConfigError where the model needs other images, or labels below `num_classes` (0 needs none)."""
    size = low_res_size(options)
    if low_res is None:
        if size is not None:
            raise ConfigError(
                f"model={model_path} is a super-resolution model: give low_res=NPZ_OR_JOB, its images of {size} px"
            )
        return
    source = low_res.source
    if size is None:
        raise ConfigError(f"low_res={source.path}: model={model_path} makes images from noise alone, leave low_res out")
    if source.image_size != size:
        raise ConfigError(
            f"low_res={source.path} holds images of {source.image_size} px, model={model_path} starts from {size} px "
            "(its model.low_res_size)"
        )
    if num_classes:
        _check_labels(source, num_classes)


def _check_labels(source: NpzImages, num_classes: int) -> None:
    if source.labels is None:
        raise ConfigError(
            f"low_res={source.path} has no labels (arr_1), which this job needs, below {num_classes}: sample it from a "
            "model with classes, or add them"
        )
    low, high = source.labels.min(), source.labels.max()
    if low < 0 or high >= num_classes:
        raise ConfigError(
            f"low_res={source.path} has labels from {low} to {high}, this job knows 0 to {num_classes - 1}: give "
            "images of the same classes"
        )


def check_count(low_res: LowRes, num_samples: int) -> None:
    """ConfigError where there are fewer images than samples are wanted."""
    source = low_res.source
    if source.num_images < num_samples:
        raise ConfigError(
            f"num_samples={num_samples}, but low_res={source.path} holds {source.num_images} images: sample more of "
            "those first, or ask for fewer"
        )


def pinned_rows(low_res: LowRes, num_samples: int, job: Job | None) -> PinnedRows:
    """What a job of `num_samples` pins of low_res; of a job that has begun, at least what it has pinned already.

    Only rows that were asked for are pinned, so that low_res may grow. DataError where the npz is damaged, ConfigError
    where it does not begin with the job's pinned rows.
    """
    source, before = low_res.source, None if job is None else job.low_res
    if before is not None and source.rows_checksum(before.num_images) != before.sha256:
        assert job is not None
        raise ConfigError(
            f"out={job.out} holds a job of the first {before.num_images} images of {before.source}, and "
            f"low_res={source.path} ({source.num_images} images) does not begin with these and their labels: give "
            "those, or another out"
        )
    if before is not None and before.num_images >= num_samples:
        return PinnedRows(low_res.given, source.path, before.num_images, before.sha256)
    return PinnedRows(low_res.given, source.path, num_samples, source.rows_checksum(num_samples))
