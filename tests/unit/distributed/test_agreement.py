"""Ranks that wait for rank 0's work."""

import threading
from typing import Any

import pytest

from dist_diffusion.distributed import agreement
from dist_diffusion.errors import PeerLostError


def test_a_peer_lost_during_long_work_ends_the_waiting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, is_done = threading.Event(), threading.Event()

    def work() -> None:
        assert go_on.wait(10)
        is_done.set()

    def wait_for_all(group: Any, is_done: Any) -> None:
        raise PeerLostError("peer lost: rank 1")

    monkeypatch.setattr(agreement, "wait_for_all", wait_for_all)
    timer = threading.Timer(5, go_on.set)
    timer.start()
    group: Any = type("Group", (), {"rank": 0})
    with pytest.raises(PeerLostError):
        agreement.patiently_on_rank_zero(group, work)
    assert not is_done.is_set()
    timer.cancel()
    go_on.set()
