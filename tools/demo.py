"""`make demo`: Fashion-MNIST from shards to guided samples and one table, in runs/demo.

A stage whose committed output exists is skipped, one that was interrupted goes on where it was.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dist_diffusion.config.load import load
from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.data import manifest
from dist_diffusion.distributed.parent import die_with_parent
from dist_diffusion.errors import DONE, DataError, DistDiffusionError
from dist_diffusion.observe import grids
from dist_diffusion.runs import verdict
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.storage import publish

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "runs/fashion-mnist"
DEMO = "runs/demo"
SHARDS = f"{DEMO}/shards"
CLASS_NAMES = f"{DEMO}/classes.txt"
REFERENCE = f"{DEMO}/reference.npz"
GRID = f"{DEMO}/samples.png"
SUMMARY = f"{DEMO}/summary.json"

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MODES = ("none", "cfg", "classifier", "both")
COLUMNS = {
    "fd": "FD-lite0@1k",
    "kid": "KID",
    "score": "score",
    "precision": "precision",
    "recall": "recall",
    "label_agreement": "agreement",
}
NUM_RANKS = 2
NUM_SAMPLES = 1000
NUM_REFERENCE = 10_000
IMAGE_SIZE = 16
JUDGE_STEPS = 200
GRID_ROWS_OF_A_MODE = 2


@dataclass(frozen=True)
class Stage:
    """A step of the demo: `is_done` looks for its committed output."""

    name: str
    is_done: Callable[[], bool]
    work: list[str] | Callable[[], None]


def stages() -> list[Stage]:
    """The demo, in order."""
    shards = f"data.shards={SHARDS}"
    make_shards = [sys.executable, "tools/make_shards.py", SOURCE, SHARDS, "--classes", CLASS_NAMES]
    judge = ["seed=1", f"train.steps={JUDGE_STEPS}"]
    return [
        Stage("make shards", partial(exists, f"{SHARDS}/manifest.json"), make_shards),
        training("diffusion", "diffusion", shards),
        training("classifier", "classifier", shards),
        training("judge", "classifier", shards, *judge),
        *(sampling(mode) for mode in MODES),
        Stage("reference statistics", partial(exists, REFERENCE), make_reference),
        Stage("evaluate", partial(exists, SUMMARY), evaluate),
    ]


def training(name: str, recipe: str, *overrides: str) -> Stage:
    """A run in runs/demo/NAME, done when its verdict says so."""

    def is_done() -> bool:
        found = verdict.read(RunDir(f"{DEMO}/{name}").verdict)
        return found is not None and found.code == DONE

    command = on_ranks("train", f"configs/demo/{recipe}.yaml", f"run_dir={DEMO}/{name}", *overrides)
    return Stage(f"train {name}", is_done, command)


def sampling(mode: str) -> Stage:
    """A sampling job in runs/demo/samples/MODE, done when its shards are merged."""
    overrides = [f"guidance.mode={mode}", f"guidance.classifier={DEMO}/classifier", f"num_samples={NUM_SAMPLES}"]
    where = [f"model={DEMO}/diffusion", f"out={DEMO}/samples/{mode}"]
    command = on_ranks("sample", "configs/demo/sample.yaml", *where, *overrides)
    return Stage(f"sample, guidance {mode}", partial(exists, samples_of(mode)), command)


def on_ranks(*arguments: str) -> list[str]:
    """A dist-diffusion command line on the demo's ranks."""
    return ["launch/mpirun.sh", "-np", str(NUM_RANKS), sys.executable, "-m", "dist_diffusion", *arguments]


def exists(path: str) -> bool:
    """Whether a file that is published whole is there."""
    return Path(path).is_file()


def samples_of(mode: str) -> str:
    """The merged samples of a job."""
    return f"{DEMO}/samples/{mode}/samples_{NUM_SAMPLES}x{IMAGE_SIZE}x{IMAGE_SIZE}x3.npz"


def make_reference() -> None:
    """Statistics of training images, which all evaluations share."""
    from dist_diffusion.evaluation import reference

    reference.make(SHARDS, REFERENCE, NUM_REFERENCE, IMAGE_SIZE, batch_size=64, say=print)


def evaluate() -> None:
    """Metrics of every mode, in one process: torch and the networks are loaded once."""
    from dist_diffusion.evaluation import report

    rows = []
    for mode in MODES:
        where = [f"samples={DEMO}/samples/{mode}", f"reference={REFERENCE}", f"out={DEMO}/evaluation/{mode}"]
        overrides = [*where, f"judge={DEMO}/judge"]
        metrics = report.evaluate(load(EvaluateRecipe, "configs/demo/evaluate.yaml", overrides), say=lambda _: None)
        rows.append({"guidance": mode, **{key: metrics[key] for key in COLUMNS}})
    publish.write_json(SUMMARY, rows)


def draw_grid() -> None:
    """The same images (index, label, noise) in every mode: two rows a mode, a column a class."""
    labels = np.load(samples_of("none"))["arr_1"]
    of_class = [np.flatnonzero(labels == label)[:GRID_ROWS_OF_A_MODE] for label in range(len(CLASSES))]
    rows = []
    for mode in MODES:
        images = np.load(samples_of(mode))["arr_0"]
        rows += [(mode, images[list(indices)]) for indices in zip(*of_class, strict=True)]
    names = manifest.load(SHARDS).classes
    grids.save_png(GRID, grids.labelled_grid(rows, names, scale=4))


def table(rows: list[dict[str, float | str]]) -> str:
    """The summary as text."""
    lines = ["".join([f"{'guidance':<12}", *(f"{title:>13}" for title in COLUMNS.values())])]
    lines += ["".join([f"{row['guidance']:<12}", *(f"{row[key]:>13.4g}" for key in COLUMNS)]) for row in rows]
    return "\n".join(lines)


def run(stage: Stage, title: str) -> None:
    """Do one stage, unless it is done; a failed command ends the demo with its exit code."""
    if stage.is_done():
        print(f"{title}: done before", flush=True)
        return
    print(title, flush=True)
    start = time.monotonic()
    if callable(stage.work):
        stage.work()
    else:
        start_and_wait(stage.work)
    print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)


def start_and_wait(command: list[str]) -> None:
    """Run a command that dies with this process, so that a killed demo leaves nobody at work in its folder."""
    code = subprocess.run(command, preexec_fn=partial(die_with_parent, os.getpid()), check=False).returncode
    if code:
        print(f"demo: exit code {code} of: {shlex.join(command)}", file=sys.stderr, flush=True)
        sys.exit(code if code > 0 else 128 - code)


def main() -> None:
    """Run the stages and print what came of them."""
    os.chdir(ROOT)
    if not Path(SOURCE).is_dir():
        raise DataError(f"{SOURCE} is missing: make setup says how to get the dataset")
    Path(DEMO).mkdir(parents=True, exist_ok=True)
    with open(f"{DEMO}/lock", "w") as lock:
        take(lock.fileno())
        publish.write_bytes(CLASS_NAMES, "\n".join(CLASSES).encode())
        start = time.monotonic()
        todo = stages()
        for number, stage in enumerate(todo, 1):
            run(stage, f"[{number}/{len(todo)}] {stage.name}")
        draw_grid()
        print(f"demo: {time.monotonic() - start:.0f} s\n")
        print(table(json.loads(Path(SUMMARY).read_text())))
        print(f"\nFD-lite0 of {NUM_SAMPLES} samples is biased upwards: compare rows, not papers.")
        print(f"grid {GRID}, table {SUMMARY}, TensorBoard: .venv/bin/tensorboard --logdir {DEMO}")


def take(lock: int) -> None:
    """Wait until no other demo works in the folder; a killed one's lock is gone with it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another demo is at work in {DEMO}: waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    try:
        main()
    except DistDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
