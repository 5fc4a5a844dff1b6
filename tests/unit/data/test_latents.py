"""Latents in shards: read as they were written, scaled, and never taken for images."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import manifest, shards, sources
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.latents import LatentFormat, latent_format, read_latent
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.making import npy
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order
from dist_diffusion.errors import ConfigError


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(48, 4, 8, 8)).astype(np.float16), np.arange(48) % 3


@pytest.fixture
def latents(arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Manifest:
    source = tmp_path / "source"
    source.mkdir()
    np.save(source / "latents.npy", arrays[0])
    np.save(source / "labels.npy", arrays[1])
    return shards.make(sources.open_source(str(source)), str(tmp_path / "latents"), 20, seed=0, say=lambda _: None)


def test_a_batch_holds_the_arrays_scaled(latents: Manifest, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    index = manifest.index(latents)
    order = Order(latents.identities, 0, streams=4, batch=16, block=8)
    options = DataOptions(image_size=8, random_flip=False, latents=True, latent_scale=0.5)
    originals = {array.tobytes(): label for array, label in zip(*arrays, strict=True)}
    with Loader(latents, index, order, options, (), 0, range(16), 0) as loader:
        batches = list(itertools.islice(loader, 3))
    assert {batch.images.dtype for batch in batches} == {torch.float32}
    seen = [image for batch in batches for image in batch.images]
    labels = [label for batch in batches for label in batch.labels.tolist()]
    assert [originals[(image * 2).numpy().astype(np.float16).tobytes()] for image in seen] == labels
    assert len({image.numpy().tobytes() for image in seen}) == 48


def test_the_set_says_what_its_arrays_are(latents: Manifest, made: Manifest) -> None:
    assert latent_format(latents) == LatentFormat((4, 8, 8), "float16")
    with pytest.raises(ConfigError, match=r"data\.latents=true, but .* holds images"):
        latent_format(made)


def test_what_is_no_such_array_cannot_be_decoded() -> None:
    expected = LatentFormat((4, 8, 8), "float16")
    wrong = npy.encode(np.zeros((4, 8, 9), dtype=np.float16))
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (4, 8, 9000000000000), }\n"
    asks_for_too_much = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    not_closed = b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((("
    short = (b"", b"\x93NUMPY", b"PK\x03\x04", not_closed, asks_for_too_much)
    for data in (*short, wrong, npy.encode(np.zeros((4, 8, 8), dtype=np.float32))):
        with pytest.raises(UndecodableError, match=r"no npy array|but its set is float16 of \(4, 8, 8\)"):
            read_latent(data, expected)
    with pytest.raises(UndecodableError, match="not finite"):
        read_latent(npy.encode(np.full((4, 8, 8), np.inf, dtype=np.float16)), expected)
