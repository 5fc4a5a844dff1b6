"""Images per second over the last updates, and the time that is left."""

import math
from collections import deque

_WINDOW = 50


class Throughput:
    """Counts from `start_images` to `total_images`; the first update only starts the clock."""

    def __init__(self, total_images: int, start_images: int) -> None:
        self._total = total_images
        self._images = start_images
        self._marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def update(self, images: int, now: float) -> None:
        """`images` have been seen since the run's very start, at time `now` in seconds of one steady clock."""
        self._images = images
        self._marks.append((now, images))

    @property
    def images_per_s(self) -> float:
        """Over the last updates; 0 before the second."""
        if len(self._marks) < 2:
            return 0.0
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / (last - first) if last > first else 0.0

    @property
    def eta_s(self) -> float:
        """Seconds until `total_images` at this speed; infinite before the second update."""
        rate = self.images_per_s
        return (self._total - self._images) / rate if rate else math.inf


def human(seconds: float) -> str:
    """Two largest units: "45s", "3m 20s", "1h 02m", "2d 03h"; "unknown" where infinite."""
    if math.isinf(seconds):
        return "unknown"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24:02d}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"
