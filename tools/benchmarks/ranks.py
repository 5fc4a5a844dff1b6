"""Programs of this folder that run in ranks of their own, started as training is, and what they report."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dist_diffusion.errors import InternalError

NUM_RANKS = 2
OF_A_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ROOT = Path(__file__).resolve().parents[2]


def report_of(program: str, ranks: int, threads: int, *arguments: str) -> Any:
    """What `benchmarks/PROGRAM.py REPORT ARGUMENTS`, in so many ranks that share the threads, leaves in REPORT."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{program}", str(report), *arguments]
        if ranks > 1:
            command = [str(ROOT / "launch/mpirun.sh"), "-np", str(ranks), *command]
        done = subprocess.run(command, env=environment(max(1, threads // ranks)), stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise InternalError(f"benchmarks.{program} failed:\n{done.stderr[-2000:]}")
        return json.loads(report.read_text())


def environment(threads: int) -> dict[str, str]:
    """Of a rank: without the variables of MPI, which the peer's import starts in this process behind Python's back, and
    without those that a process group of this process has left.
    """
    paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT)])
    inherited = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
    return {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
