import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dist_diffusion.errors import DataError
from dist_diffusion.evaluation import reference
from dist_diffusion.evaluation.images import open_images

TOOL = Path(__file__).resolve().parents[3] / "tools" / "make_reference.py"


def test_saved_statistics_come_back_to_the_bit(tmp_path, write_npz, network):
    path = write_npz("a.npz", 20)
    made = reference.compute(open_images(path), network, batch_size=8)
    assert (made.network, made.source, made.num_images, made.image_size) == ("tiny", path, 20, 16)
    out = str(tmp_path / "new" / "statistics.npz")
    reference.save(made, out)
    loaded = reference.load(out, network)
    for field in dataclasses.fields(made):
        a, b = getattr(made, field.name), getattr(loaded, field.name)
        np.testing.assert_array_equal(a, b)
        assert type(a) is type(b)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["statistics.npz"]


def test_statistics_and_images_are_told_apart(tmp_path, write_npz, network):
    path = write_npz("a.npz", 20)
    out = str(tmp_path / "statistics.npz")
    reference.save(reference.compute(open_images(path), network, batch_size=8), out)
    assert isinstance(reference.open_side(out, network, None, None), reference.Statistics)
    assert reference.open_side(path, network, None, None).num_images == 20
    # ADM's reference files hold both; its statistics are Inception's.
    np.savez(tmp_path / "both.npz", mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((6, 8, 8, 3), dtype=np.uint8))
    assert reference.open_side(str(tmp_path / "both.npz"), network, None, None).num_images == 6


def test_statistics_of_another_network_are_refused(tmp_path, write_npz, network):
    out = str(tmp_path / "statistics.npz")
    made = reference.compute(open_images(write_npz("a.npz", 20)), network, batch_size=8)
    reference.save(dataclasses.replace(made, network="other"), out)
    with pytest.raises(DataError, match="of the network other, not of tiny"):
        reference.load(out, network)


def test_statistics_of_another_tool_are_refused(tmp_path, network):
    np.savez(tmp_path / "a.npz", mu=np.zeros(8), sigma=np.eye(8))
    with pytest.raises(DataError, match=r"a\.npz .* tools/make_reference\.py"):
        reference.open_side(str(tmp_path / "a.npz"), network, None, None)


def test_too_few_images_are_named(write_npz, network):
    path = write_npz("a.npz", 3)
    with pytest.raises(DataError, match=r"a\.npz holds 3 images: too few"):
        reference.compute(open_images(path), network, batch_size=8)


def test_the_tool_saves_statistics_of_the_first_images_of_shards(tmp_path, shard_folder):
    out = str(tmp_path / "statistics.npz")
    command = [sys.executable, str(TOOL), shard_folder, out, "--image-size", "12", "--num", "20"]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(out) as archive:
        assert archive["network"] == "efficientnet-lite0-64px" and archive["image_size"] == 12
        assert (
            archive["features"].shape == (20, 1280) and archive["checksum"] == open_images(shard_folder, 12).checksum()
        )


@pytest.mark.parametrize(("num", "image_size"), [(31, 16), (None, 24)])
def test_statistics_of_other_images_than_asked_for_are_not_made(tmp_path, write_npz, num, image_size):
    path = write_npz("a.npz", 30)
    with pytest.raises(DataError, match=rf"a\.npz gives 30 images of 16 px, not the {num or 30} of {image_size} px"):
        reference.make(path, str(tmp_path / "out.npz"), num, image_size, 64, say=lambda _: None)
    assert not (tmp_path / "out.npz").exists()
