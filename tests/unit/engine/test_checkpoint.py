"""What a save in flight says of itself."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import wait_until

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.engine import checkpoint
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.storage import committed


def test_a_save_is_finished_once_its_averages_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before, the ranks would wait for rank 0's disk at their next step boundary."""
    begun, go_on = threading.Event(), threading.Event()

    def keep(*of_commit: object) -> None:
        begun.set()
        assert go_on.wait(20)

    for holder, name in ((checkpoint.slices, "snapshot"), (checkpoint, "write_share")):
        monkeypatch.setattr(holder, name, lambda *arguments: None)
    for name in ("_commit", "_prune"):
        monkeypatch.setattr(Checkpointer, name, lambda *arguments: None)
    monkeypatch.setattr(Checkpointer, "_marker", lambda *arguments: {})
    alone: Any = SimpleNamespace(rank=0, world_size=1)
    snapshots: Any = SimpleNamespace(keep=keep)
    saver = Checkpointer(
        str(tmp_path), DiffusionRecipe(), alone, committed.new_attempt(), print, lambda: True, snapshots=snapshots
    )
    engine: Any = SimpleNamespace(deepspeed=None, ema=None)
    saver.save(engine, 1, {}, None)
    assert begun.wait(20)
    assert saver.in_flight and not saver.finished
    go_on.set()
    wait_until(lambda: saver.finished, "the end of the save", limit_s=20)
