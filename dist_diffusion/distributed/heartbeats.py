"""What the ranks tell each other while they train: short posts in the store of the rendezvous.

All talking with the store is a thread's own business: where the process that holds the store is stopped, a caller waits
for its answer without a limit, whatever time-out it gave (torch 2.13).
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch import distributed as dist

from dist_diffusion.distributed.whereabouts import Seen, Spot, Whereabouts

_CONNECT_S = 30.0


@dataclass(frozen=True)
class Rhythm:
    """How often the watchdog looks, and how long it waits, in seconds."""

    look_s: float = 1.0
    post_s: float = 5.0
    """A rank that is alive posts at least this often."""
    still_s: float = 15.0
    """Posts that stand still for longer are those of a rank that is stopped or gone."""
    grace_s: float = 60.0
    """After a limit: how long a hang that no thread of Python can end is left."""
    last_words_s: float = 10.0
    """How long verdict and stacks may take at the end."""
    linger_s: float = 3.0
    """How long the end waits for the other ranks' stacks: launchers kill them once one has ended."""


@dataclass(frozen=True)
class _Heard:
    value: bytes
    changed: float


class Heartbeats:
    """Posts this rank's whereabouts, hears an alarm of the others, and reads their posts while `listening` is set."""

    def __init__(
        self, where: Whereabouts, rank: int, world_size: int, say_error: Callable[[str], None], rhythm: Rhythm
    ) -> None:
        self.listening = False
        self.alarm: str | None = None
        """Why another rank ends the run."""
        self._where, self._rank, self._world_size = where, rank, world_size
        self._say_error, self._rhythm = say_error, rhythm
        # Under torchrun the store outlives a restart of the ranks: an alarm of before is not for these.
        self._prefix = f"dist_diffusion/watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._own_alarm: str | None = None
        self._heard: dict[int, _Heard] = {}
        self._num_posts = 0
        self._posted: tuple[Spot, float] | None = None
        self._listened = -float("inf")
        self._answered = time.monotonic()
        self._ended, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """From here on, once the process group has its rendezvous."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the posts. Waits only shortly: the store may not answer."""
        self._ended.set()
        self._wake.set()
        self._thread.join(self._rhythm.look_s)

    def raise_alarm(self, reason: str) -> None:
        """Has all ranks end, as far as the store can tell them; returns at once."""
        self._own_alarm = reason
        self._wake.set()

    @property
    def unanswered_s(self) -> float:
        """How long the store has not answered."""
        return time.monotonic() - self._answered

    def seen(self) -> list[Seen | None]:
        """All ranks as their posts tell, in order; None for one that has never posted."""
        heard = dict(self._heard)
        ranks = [self._seen(heard[rank]) if rank in heard else None for rank in range(self._world_size)]
        ranks[self._rank] = Seen(socket.gethostname(), self._where.spot, 0.0)
        return ranks

    def _seen(self, heard: _Heard) -> Seen:
        post = json.loads(heard.value)
        # As of the last reading: what was not read cannot have been seen to move.
        return Seen(post["host"], Spot(*post["spot"]), self._listened - heard.changed)

    def _run(self) -> None:
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=_CONNECT_S),
            )
            while not self._ended.is_set():
                self._exchange(store)
                self._wake.wait(self._rhythm.look_s)
                self._wake.clear()
        except RuntimeError as error:
            # Rank 0 takes the store with it: at the end of a run this rank is about to stop as well.
            if not self._ended.wait(self._rhythm.still_s):
                reason = str(error).splitlines()[0]
                with suppress(OSError):
                    self._say_error(f"the watchdog hears no more of the other ranks, and watches on: {reason}")

    def _exchange(self, store: dist.TCPStore) -> None:
        """One round: post, alarm, read."""
        spot, now = self._where.spot, time.monotonic()
        if self._posted is None or spot != self._posted[0] or now - self._posted[1] >= self._rhythm.post_s:
            self._post(store, spot)
            self._posted = spot, now
        if self._own_alarm is not None:
            store.set(self._key("alarm"), self._own_alarm)
        if store.check([self._key("alarm")]):
            self.alarm = store.get(self._key("alarm")).decode()
        if self.listening and now - self._listened >= self._rhythm.post_s / 2:
            self._listen(store)
        self._answered = time.monotonic()

    def _post(self, store: dist.TCPStore, spot: Spot) -> None:
        self._num_posts += 1
        post = {"number": self._num_posts, "host": socket.gethostname(), "spot": list(spot)}
        store.set(self._key(self._rank), json.dumps(post))

    def _listen(self, store: dist.TCPStore) -> None:
        """Reads all posts. A key that is not there yet would be waited for: it is asked for first."""
        ranks = [r for r in range(self._world_size) if r in self._heard or store.check([self._key(r)])]
        values = store.multi_get([self._key(rank) for rank in ranks])
        now = time.monotonic()
        for rank, value in zip(ranks, values, strict=True):
            if rank not in self._heard or self._heard[rank].value != value:
                self._heard[rank] = _Heard(value, now)
        self._listened = now

    def _key(self, name: int | str) -> str:
        return f"{self._prefix}/{name}"
