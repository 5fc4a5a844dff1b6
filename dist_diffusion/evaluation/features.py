"""Batches of images through a feature network, resizing ahead of it in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from dist_diffusion.evaluation.networks import FeatureNetwork

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = min(8, os.cpu_count() or 1)


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in threads and in order, a few items ahead of the consumer (Pillow leaves the GIL while it works)."""
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def extract(network: FeatureNetwork, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Uint8 NHWC batches to float32 features (N, D) and logits (N, 1000) of all of them."""
    outputs = [network.features_and_logits(images) for images in ahead(network.prepare, batches)]
    return np.concatenate([features for features, _ in outputs]), np.concatenate([logits for _, logits in outputs])
