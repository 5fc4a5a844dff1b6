"""The engine on two real ranks; one launch, since importing torch and DeepSpeed costs most of it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_engine_on_two_ranks(tmp_path: Path) -> None:
    script = Path(__file__).with_name("engine_checks.py")
    done = subprocess.run(
        [str(ROOT / "launch/mpirun.sh"), "-np", "2", sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all engine checks passed" in done.stdout
