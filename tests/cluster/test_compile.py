"""engine.compile trains the same run, with every block compiled, and saves what any run can read."""

import shutil
from pathlib import Path

import pytest
from support import Launcher, column, rows, train_arguments

SMALL = ["model.channel_mult=[1]", "model.attention_resolutions=[]", "train.steps=6", "checkpoint.every=3"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.timeout(600)
def test_compiled_blocks_train_the_same_run(launcher: Launcher, workplace: Path) -> None:
    """Its commit is gone on from without compiling: it leaves no trace there."""
    launcher.run(1, *train_arguments(workplace, "eager"), *SMALL)
    _, err = launcher.run(1, *train_arguments(workplace, "compiled"), *SMALL, "engine.compile=true")
    assert "recompile_limit" not in err
    eager, compiled = rows(workplace / "eager"), rows(workplace / "compiled")
    assert column(compiled, "batch_digest") == column(eager, "batch_digest")
    assert column(compiled, "loss") == pytest.approx(column(eager, "loss"), rel=1e-5)
    launcher.run(1, *train_arguments(workplace, "compiled"), *SMALL, "train.steps=8")
    assert [row["step"] for row in rows(workplace / "compiled")] == list(range(1, 9))
