"""`dist-diffusion train` as a user runs it: one run on any cluster, through kills, with verdicts."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import (
    Launcher,
    column,
    largest_relative,
    owner_of,
    rows,
    train_arguments,
    wait_for_commit,
    wait_for_step,
)

from dist_diffusion.diffusion.timesteps import WARM, LossHistory
from dist_diffusion.runs import verdict
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.resolve import find

Train = Callable[..., list[dict]]


@pytest.fixture(scope="session")
def validated(workplace: Path) -> list[str]:
    """50 samples in 4 batches: ranks have different shares. The shards are the training's: what counts is the sums."""
    return [f"validation.shards={workplace / 'shards'}", "validation.num_samples=50", "validation.batch_size=16"]


@pytest.fixture(scope="session")
def one_rank(train: Train, validated: list[str]) -> list[dict]:
    return train("one", 1, "train.steps=16", *validated)


@pytest.fixture(scope="session")
def two_ranks(train: Train, validated: list[str]) -> list[dict]:
    return train("two", 2, *validated)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_every_layout_sees_the_same_batches_and_losses(
    workplace: Path, one_rank: list[dict], two_ranks: list[dict], train: Train, validated: list[str]
) -> None:
    """192 samples are 8 steps of 24: the comparison crosses an epoch's end. Commits are as good on every layout too."""
    assert column(two_ranks, "step") == list(range(1, 13))
    assert column(two_ranks, "batch_digest") == column(one_rank[:12], "batch_digest")
    assert len(set(column(one_rank, "batch_digest"))) == 16
    assert largest_relative(column(two_ranks, "loss"), column(one_rank[:12], "loss")) < 1e-5
    # The finished run goes on at another stage, world size and micro-batch, from its commit of step 12.
    stage_3 = ("engine.zero_stage=3", "engine.recompute=true")
    # As if it had been killed between the commit and its validation: the row is made up for.
    (validation := workplace / "two/validation.jsonl").write_text("".join(lines(validation)[:-1]))
    grown = train("two", 3, "train.steps=16", *stage_3, "train.micro_batch=4", *validated)
    assert grown[:12] == two_ranks
    assert column(grown, "batch_digest") == column(one_rank, "batch_digest")
    assert largest_relative(column(grown, "loss"), column(one_rank, "loss")) < 1e-5
    by_layout = [[json.loads(line) for line in lines(workplace / name / "validation.jsonl")] for name in ("one", "two")]
    assert [column(found, "step") for found in by_layout] == [[4, 8, 12, 16]] * 2
    assert all(row["export"] == "ema_0" and row["num_samples"] == 50 for row in by_layout[0])
    for key in ("loss", "mse", "vb", "loss_q1", "loss_q2", "loss_q3", "loss_q4"):
        assert largest_relative(*(column(found, key) for found in by_layout)) < 1e-5


def test_a_killed_run_resumes_bitwise(launcher: Launcher, workplace: Path, two_ranks: list[dict], train: Train) -> None:
    run_dir = workplace / "killed"
    process = launcher.start(2, *train_arguments(workplace, "killed"), "train.steps=100000")
    wait_for_commit(run_dir, 8)
    os.kill(owner_of(run_dir), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    last = committed.scan(str(run_dir / "checkpoints"))[-1].marker["step"]
    assert last >= 8
    resumed = train("killed", 2, f"train.steps={last + 4}")
    compared = min(12, len(resumed))
    for key in ("batch_digest", "loss", "grad_norm"):
        assert column(resumed[:compared], key) == column(two_ranks[:compared], key)
    assert column(resumed, "step") == list(range(1, last + 5))
    found = verdict.read(RunDir(str(run_dir)).verdict)
    assert found is not None and (found.code, found.step) == (0, last + 4)
    assert not (run_dir / "lease.json").exists()


def test_loss_aware_timesteps_resume_bitwise(workplace: Path, train: Train) -> None:
    """The history of losses is part of the state: a run in two parts draws as the run in one does, and learns so."""
    aware = ("objective.timesteps=loss_aware", "diffusion.num_timesteps=21", "checkpoint.every=100")
    whole = train("aware", 2, *aware, "train.steps=44")
    train("aware-parts", 2, *aware, "train.steps=32")
    history = LossHistory.from_json(committed.scan(str(workplace / "aware-parts/checkpoints"))[-1].marker["task"])
    assert history.counts.min() >= WARM, "the comparison must be of steps that draw by the losses"
    assert history.counts.sum() == 32 * 24
    parts = train("aware-parts", 2, *aware, "train.steps=44")
    for key in ("batch_digest", "loss", "grad_norm"):
        assert column(parts, key) == column(whole, key)
    ends = [
        committed.scan(str(workplace / name / "checkpoints"))[-1].marker["task"] for name in ("aware", "aware-parts")
    ]
    assert ends[0] == ends[1]


def test_a_signal_is_an_agreed_stop_that_saves(launcher: Launcher, workplace: Path, train: Train) -> None:
    run_dir = workplace / "stopped"
    arguments = [*train_arguments(workplace, "stopped"), "checkpoint.every=100000"]
    process = launcher.start(2, *arguments, "train.steps=100000")
    wait_for_step(run_dir, 3)
    os.kill(owner_of(run_dir), signal.SIGUSR2)  # one rank alone: the ranks agree
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.count("dist-diffusion: stopped") == 1, err
    found = verdict.read(RunDir(str(run_dir)).verdict)
    assert found is not None and found.code == 75 and "stopped at step" in found.reason
    done = len(rows(run_dir))
    assert found.step == done
    resumed = train("stopped", 1, f"train.steps={done + 2}")
    assert column(resumed, "step") == list(range(1, done + 3))


def test_the_classifier_learns_from_the_same_loop(train: Train) -> None:
    found = train("classifier", 2, "train.steps=30", recipe="classifier")
    assert column(found, "step") == list(range(1, 31))
    assert all(0 <= row["accuracy"] <= 1 for row in found)
    assert sum(column(found, "loss")[-5:]) < sum(column(found, "loss")[:5])


def test_a_new_run_starts_from_the_weights_of_another(
    launcher: Launcher, workplace: Path, two_ranks: list[dict]
) -> None:
    """Its average too: at a rate that moves nothing, the first export is the source's, here without the null row."""
    source = find(str(workplace / "two"), None)
    overrides = [f"init_from={workplace / 'two'}", "objective.p_uncond=0", "train.steps=1", "optim.lr=1e-12"]
    out, _ = launcher.run(2, *train_arguments(workplace, "tuned"), *overrides, "engine.zero_stage=3")
    assert f"starting from the weights of {source}" in out
    assert "the null row is left out" in out
    given, made = files.load(source).tensors, files.load(find(str(workplace / "tuned"), None)).tensors
    given["label_emb.weight"] = given["label_emb.weight"][:3]
    torch.testing.assert_close(made, given, rtol=0, atol=1e-9)


def test_a_commit_with_a_flipped_byte_is_named_and_passed_over(
    launcher: Launcher, workplace: Path, two_ranks: list[dict], train: Train
) -> None:
    run_dir = workplace / "flipped"
    train("flipped", 1)
    newest = committed.scan(str(run_dir / "checkpoints"))[-1]
    damaged = Path(newest.path) / "rank-00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    # A run that has a commit does not look at what another would start from.
    out, _ = launcher.run(1, *train_arguments(workplace, "flipped"), "init_from=nowhere")
    assert re.search(r"step-000000012 cannot be used: .*rank-00000\.safetensors is damaged", out)
    assert "resuming at step 8" in out
    assert Path(f"{newest.path}.damaged").is_dir()
    assert column(rows(run_dir), "step") == list(range(1, 13))
    assert (run_dir / "metrics.stale.jsonl").exists()
    for commit in committed.scan(str(run_dir / "checkpoints")):
        os.remove(Path(commit.path) / "export-ema_0.safetensors")
    _, err = launcher.run(1, *train_arguments(workplace, "flipped"), code=2)
    assert "none of its 2 commits verifies" in err


class TestBadInput:
    """Exit code 2 and one message that names the file or key, under mpirun too, before training starts."""

    def test_missing_and_empty_shards(self, launcher: Launcher, workplace: Path) -> None:
        recipe = str(workplace / "diffusion.yaml")
        (workplace / "empty").mkdir()
        for name, part in (("nowhere", "does not exist"), ("empty", "is empty")):
            shards = str(workplace / name)
            launcher.refused(2, ["train", recipe, f"run_dir={workplace}/x", f"data.shards={shards}"], shards, part)
        assert not (workplace / "x").exists()

    def test_a_manifest_that_does_not_match(self, launcher: Launcher, workplace: Path) -> None:
        short = workplace / "short"
        short.mkdir()
        for path in (workplace / "shards").iterdir():
            (short / path.name).write_bytes(path.read_bytes())
        tar = sorted(short.glob("*.tar"))[0]
        tar.write_bytes(tar.read_bytes()[:-512])
        arguments = ["train", str(workplace / "diffusion.yaml"), f"run_dir={workplace}/x", f"data.shards={short}"]
        launcher.refused(2, arguments, tar.name, "bytes")

    def test_unknown_keys_and_batches_that_do_not_divide(self, launcher: Launcher, workplace: Path) -> None:
        arguments = train_arguments(workplace, "x")
        launcher.refused(2, [*arguments, "optim.lrr=1"], "optim.lrr", "did you mean 'lr'")
        launcher.refused(2, [*arguments, "train.global_batch=25"], "train.global_batch=25", "2 ranks")
        launcher.refused(2, ["train", "gone.yaml"], "gone.yaml")
        assert not (workplace / "x").exists()

    def test_a_checkpoint_of_another_architecture(
        self, launcher: Launcher, workplace: Path, two_ranks: list[dict]
    ) -> None:
        kept = [workplace / "two" / name for name in ("config.yaml", "exit.json", "environment.json")]
        before = [path.read_bytes() for path in kept]
        arguments = [*train_arguments(workplace, "two"), "model.channels=64"]
        launcher.refused(2, arguments, "model.channels: 32 -> 64", str(workplace / "two"))
        assert [path.read_bytes() for path in kept] == before, "a refused start changed the run"
        assert not (workplace / "two/lease.json").exists()

    def test_a_run_directory_in_use(self, launcher: Launcher, workplace: Path) -> None:
        run_dir = workplace / "busy"
        holder = launcher.start(1, *train_arguments(workplace, "busy"), "train.steps=100000")
        try:
            wait_for_step(run_dir, 1)
            owner = owner_of(run_dir)
            before = (run_dir / "config.yaml").read_bytes()
            launcher.refused(2, train_arguments(workplace, "busy"), str(run_dir), f"process {owner}")
            assert (run_dir / "config.yaml").read_bytes() == before
            assert holder.poll() is None
        finally:
            os.kill(owner_of(run_dir), signal.SIGKILL)
            holder.communicate(timeout=60)
