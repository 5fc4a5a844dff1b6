"""The metrics on features and logits for which torch-fidelity, pytorch-fid and prdc gave the values."""

import json
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.evaluation import metrics

FOLDER = Path(__file__).parent
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "metrics.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((FOLDER / "metrics.json").read_text())


def test_frechet_distance(given, expected):
    distance = metrics.frechet_distance(*metrics.gaussian(given["real"]), *metrics.gaussian(given["fake"]))
    assert distance == pytest.approx(expected["fid_torch_fidelity"], rel=TOLERANCE)
    assert distance == pytest.approx(expected["fid_pytorch_fid"], rel=TOLERANCE)


def test_spatial_frechet_distance(given, expected):
    real, fake = metrics.gaussian(given["spatial_real"]), metrics.gaussian(given["spatial_fake"])
    assert metrics.frechet_distance(*real, *fake) == pytest.approx(expected["sfid"], rel=TOLERANCE)


@pytest.mark.parametrize("splits", [1, 4])
def test_score(given, expected, splits):
    assert metrics.score(given["logits"], splits) == pytest.approx(tuple(expected[f"is_{splits}"]), rel=TOLERANCE)


def test_precision_and_recall(given, expected):
    real, fake = given["real"], given["fake"]
    found = metrics.precision_recall(fake, real, metrics.squared_radii(fake), metrics.squared_radii(real))
    assert found == pytest.approx((expected["precision"], expected["recall"]), rel=TOLERANCE)
