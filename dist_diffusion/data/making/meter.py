"""How far counted work is: a bar on a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Callable

from dist_diffusion.observe.console import Console

_LINE_EVERY_S = 5.0


class Meter:
    """Of `total` units. Rank 0's terminal gets the bar; `say` the lines where there is no terminal."""

    def __init__(self, say: Callable[[str], None], total: int, unit: str, rank: int = 0) -> None:
        self._say = None if sys.stderr.isatty() else say
        self._bar = Console(None, rank).progress(total, unit=unit)
        self._total = total
        self._unit = unit
        self._done = self._kept = 0
        self._start = self._said = time.monotonic()

    def advance(self, count: int, kept: bool = False) -> None:
        """So many more; what was `kept` from before says nothing about the rate."""
        self._done += count
        self._kept += count if kept else 0
        self._bar.update(self._done)
        now = time.monotonic()
        if self._say and (now - self._said > _LINE_EVERY_S or self._done == self._total):
            self._said = now
            self._say(self._line(now - self._start))

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._kept) / max(seconds, 1e-9)
        left = (self._total - self._done) / max(rate, 1.0)
        counts = f"{self._done:,} of {self._total:,} {self._unit}"
        return f"{counts}, {rate:,.0f} {self._unit}/s, {int(left // 60)}:{int(left % 60):02d} left"
