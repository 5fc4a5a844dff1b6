"""What the tests of real launches share: a launcher with a time limit, and readers of what runs leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


class Launcher:
    """Starts `dist-diffusion` commands as a user would; every one under a time limit."""

    def command(self, ranks: int, *arguments: str) -> list[str]:
        alone = [sys.executable, "-m", "dist_diffusion", *arguments]
        return alone if ranks == 1 else [str(ROOT / "launch/mpirun.sh"), "-np", str(ranks), *alone]

    def start(self, ranks: int, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["timeout", "-k", "5", "120", *self.command(ranks, *arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, ranks: int, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(ranks, *arguments)
        out, err = process.communicate()
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err


def write_class_tree(folder: Path, num_images: int, size: int) -> Path:
    """Classes a and b of PNGs of noise, in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(num_images, size, size, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[i % 2] / f"{i:04d}.png")
    return folder


def make_shards(source: Path, out: Path, *arguments: str) -> None:
    """Runs tools/make_shards.py."""
    command = [sys.executable, "tools/make_shards.py", str(source), str(out), *arguments]
    # What Python knows of the environment: MPI, once started in this process, has put its own into the real one.
    subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True, timeout=60)


def train_arguments(workplace: Path, name: str, recipe: str = "diffusion") -> list[str]:
    where = [f"run_dir={workplace / name}", f"data.shards={workplace / 'shards'}"]
    return ["train", str(workplace / f"{recipe}.yaml"), *where]


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def column(found: list[dict], key: str) -> list:
    return [row[key] for row in found]
