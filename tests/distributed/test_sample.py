"""`dist-diffusion sample` and `evaluate`: the same bytes whatever happens, in every guidance mode."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support import Launcher

RECIPE = """
num_samples: 40
batch_size: 4
shard_size: 8
sampler: {name: ddpm, steps: "25"}
guidance: {cfg_scale: 2.0, classifier_scale: 0.5}
"""

UPSAMPLER = """
task: super_resolution
data: {image_size: 16}
model: {low_res_size: 8, channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: []}
objective: {p_uncond: 0.2}
train: {steps: 4, global_batch: 8, log_every: 1}
ema: {decays: [0.9]}
checkpoint: {every: 4}
"""

Train = Callable[..., list[dict]]


@pytest.fixture(scope="session")
def models(train: Train, workplace: Path) -> Path:
    """Runs `model` and `judge`, and the sampling recipe."""
    train("model", 1)
    train("judge", 1, recipe="classifier")
    (workplace / "sample.yaml").write_text(RECIPE)
    return workplace


@pytest.fixture(scope="session")
def upsampler(train: Train, models: Path) -> Path:
    """A super-resolution run, 8 to 16 pixels."""
    (models / "super_resolution.yaml").write_text(UPSAMPLER)
    metrics = train("upsampler", 1, recipe="super_resolution")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    return models / "upsampler"


def arguments(models: Path, out: str, mode: str = "both", num: int = 40) -> list[str]:
    return [
        "sample",
        str(models / "sample.yaml"),
        f"model={models}/model",
        f"out={models}/{out}",
        f"guidance.mode={mode}",
        f"guidance.classifier={models}/judge",
        f"num_samples={num}",
    ]


def digest(models: Path, out: str, num: int = 40) -> str:
    return hashlib.sha256((models / out / f"samples_{num}x8x8x3.npz").read_bytes()).hexdigest()


def cost(models: Path, out: str) -> dict[str, float]:
    return json.loads((models / out / "cost.json").read_text())


@pytest.fixture(scope="session")
def whole(models: Path, launcher: Launcher) -> str:
    """The job in one piece, on one rank."""
    launcher.run(1, *arguments(models, "whole"))
    return digest(models, "whole")


def test_a_job_is_what_the_adm_evaluator_reads(models: Path, whole: str) -> None:
    content = np.load(models / "whole/samples_40x8x8x3.npz")
    assert content["arr_0"].shape == (40, 8, 8, 3) and content["arr_0"].dtype == np.uint8
    assert content["arr_1"].shape == (40,) and set(content["arr_1"]) == {0, 1, 2}


def test_a_job_says_what_it_cost(models: Path, whole: str) -> None:
    """25 steps, each of two halves of classifier-free guidance and one gradient."""
    found = cost(models, "whole")
    evaluations = found["network_evaluations_per_image"], found["classifier_evaluations_per_image"]
    assert (found["images"], *evaluations) == (40, 50, 25)
    assert found["images_per_second_per_rank"] == pytest.approx(40 / found["seconds"])


def test_killed_and_rerun_on_other_ranks_gives_the_same_bytes(models: Path, launcher: Launcher, whole: str) -> None:
    process = launcher.start(2, *arguments(models, "killed_job"), "sampler.steps=25")
    shards = models / "killed_job/shards"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not shards.exists() or not any(shards.glob("shard-*.npz"))):
        time.sleep(0.005)
    kill_ranks(models / "killed_job")
    process.communicate(timeout=60)
    made = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*.npz")}
    assert 0 < len(made) < 5, "killed too late to prove anything"
    launcher.run(3, *arguments(models, "killed_job"))
    assert digest(models, "killed_job") == whole
    for key in ("images", "network_evaluations_per_image", "classifier_evaluations_per_image"):
        assert cost(models, "killed_job")[key] == cost(models, "whole")[key]
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in made.items()), "a finished shard was made again"


def kill_ranks(out: Path) -> None:
    """SIGKILL to every process whose command line names the job."""
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if f"out={out}".encode() in command and b"dist_diffusion" in command and entry.name != str(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def test_a_grown_job_keeps_its_images(models: Path, launcher: Launcher, whole: str) -> None:
    launcher.run(1, *arguments(models, "grown", num=21))
    launcher.run(1, *arguments(models, "grown", num=40))
    assert digest(models, "grown") == whole
    small, large = (np.load(models / f"grown/samples_{n}x8x8x3.npz")["arr_0"] for n in (21, 40))
    assert np.array_equal(small, large[:21])
    # The shard of images 16 to 20, which was made again with its later ones, is not among those that were merged.
    assert cost(models, "grown")["images"] == 40


def test_another_batch_size_differs_by_one_grey_level_at_most(models: Path, launcher: Launcher, whole: str) -> None:
    launcher.run(1, *arguments(models, "batched"), "batch_size=8")
    a, b = (np.load(models / f"{out}/samples_40x8x8x3.npz")["arr_0"].astype(int) for out in ("whole", "batched"))
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() <= 0.005


def test_modes_and_samplers_differ_where_they_should(models: Path, launcher: Launcher, whole: str) -> None:
    images = {"both": np.load(models / "whole/samples_40x8x8x3.npz")["arr_0"][:8]}
    for mode in ("none", "cfg", "classifier"):
        # A path that the mode does not use is not opened.
        unused = [] if mode == "classifier" else [f"guidance.classifier={models}/nowhere"]
        launcher.run(1, *arguments(models, f"mode_{mode}", mode, num=8), *unused)
        images[mode] = np.load(models / f"mode_{mode}/samples_8x8x8x3.npz")["arr_0"]
    launcher.run(1, *arguments(models, "ddim", "both", num=8), "sampler.name=ddim")
    images["ddim"] = np.load(models / "ddim/samples_8x8x8x3.npz")["arr_0"]
    assert len({made.tobytes() for made in images.values()}) == 5


def test_a_cascade_follows_its_base_on_any_ranks_while_both_grow(
    models: Path, launcher: Launcher, whole: str, upsampler: Path
) -> None:
    base = dict(np.load(models / "whole/samples_40x8x8x3.npz"))
    np.savez_compressed(models / "first.npz", base["arr_0"][:11], base["arr_1"][:11])

    def cascade(ranks: int, out: str, num: int, low_res: str) -> dict[str, np.ndarray]:
        given = [
            *arguments(models, out, "cfg", num),
            f"model={upsampler}",
            f"low_res={models}/{low_res}",
            "sampler.steps=5",
        ]
        launcher.run(ranks, *given)
        return dict(np.load(models / f"{out}/samples_{num}x16x16x3.npz"))

    first = cascade(1, "cascade", 11, "first.npz")
    grown = cascade(2, "cascade", 24, "whole")
    at_once = cascade(1, "cascade_at_once", 24, "whole")
    assert np.array_equal(first["arr_0"], grown["arr_0"][:11])
    assert np.array_equal(grown["arr_0"], at_once["arr_0"])
    assert len(np.unique(at_once["arr_0"], axis=0)) == 24
    for made in (grown, at_once):
        assert np.array_equal(made["arr_1"], base["arr_1"][:24])


def test_evaluation_of_a_job_against_shards(models: Path, launcher: Launcher, whole: str) -> None:
    (models / "evaluate.yaml").write_text("batch_size: 64\n")
    where = [f"samples={models}/whole", f"reference={models}/shards", f"out={models}/evaluation"]
    out, _ = launcher.run(1, "evaluate", str(models / "evaluate.yaml"), *where, f"judge={models}/judge")
    assert (models / "evaluation/metrics.json").exists()
    assert "FD-lite0" in out
    assert "FID" not in out.replace("published FID", "")


def test_a_sweep_on_two_ranks_goes_on_in_one_process(models: Path, launcher: Launcher, whole: str) -> None:
    (models / "sweep.yaml").write_text(RECIPE.split("guidance")[0] + "modes: [none, both]\nboth: [[2, 0.5]]\n")
    where = [f"model={models}/model", f"out={models}/sweep", f"reference={models}/shards", f"judge={models}/judge"]
    command = ["sweep", str(models / "sweep.yaml"), *where, f"guidance.classifier={models}/judge"]
    launcher.run(2, *command, "modes=[none]")
    made = models / "sweep/points/none/samples_40x8x8x3.npz"
    time_ns = made.stat().st_mtime_ns
    out, _ = launcher.run(1, *command)
    assert "[1/2] none: done before" in out and made.stat().st_mtime_ns == time_ns
    table = json.loads((models / "sweep/table.json").read_text())
    assert [(row["guidance"], row["network_evaluations"]) for row in table] == [("none", 25), ("both", 50)]
    assert all(row["label_agreement"] >= 0 for row in table)
    assert digest(models, "sweep/points/both-2-0.5") == whole
    page = (models / "sweep/report.html").read_text()
    assert page.count("FD-lite0@40") > 1 and "FID" not in page.replace("not FID", "").replace("published FID", "")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["model=nowhere"], ["nowhere", "no such run or export"]),
        (["model={models}/judge"], ["is a classifier", "sampling needs a diffusion model"]),
        (["guidance.classifier={models}/model"], ["guidance.classifier", "is a diffusion model"]),
        (["sampler.steps=ddim37"], ["ddim36", "ddim38"]),
        (["out={models}/whole", "seed=5"], ["holds a job with other settings", "seed: 0 -> 5"]),
        (["guidance.classifier=null"], ["guidance.classifier is not given"]),
        (["sampler.name=ddim", "sampler.eta=1.5"], ["sampler.eta=1.5"]),
        (
            ["model={models}/upsampler", "guidance.mode=cfg", "low_res={models}/large.npz"],
            ["large.npz holds images of 16 px", "starts from 8 px"],
        ),
    ],
)
def test_bad_input(
    models: Path, launcher: Launcher, whole: str, upsampler: Path, changes: list[str], parts: list[str]
) -> None:
    np.savez(models / "large.npz", np.zeros((40, 16, 16, 3), dtype=np.uint8), np.zeros(40, dtype=np.int64))
    given = [change.format(models=models) for change in changes]
    _, err = launcher.run(1, *arguments(models, "bad"), *given, code=2)
    messages = [line for line in err.splitlines() if line.startswith("dist-diffusion: error")]
    assert len(messages) == 1, err
    assert all(part in messages[0] for part in parts), messages[0]
    assert not (models / "bad").exists(), "a refused first start pinned its settings"


def test_a_job_goes_on_without_its_run(models: Path, launcher: Launcher, whole: str) -> None:
    """The exports are the job's own: what happens to the run does not matter to it."""
    (models / "model").rename(models / "model_moved")
    try:
        out, _ = launcher.run(1, *arguments(models, "whole", num=44))
    finally:
        (models / "model_moved").rename(models / "model")
    assert "the job's own copy is used" in out
    before, grown = (np.load(models / f"whole/samples_{n}x8x8x3.npz")["arr_0"] for n in (40, 44))
    assert np.array_equal(before, grown[:40])
