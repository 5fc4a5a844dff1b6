"""Where the labels of a plot's marks go: pure geometry, in pixels."""

import math
from collections.abc import Sequence
from itertools import pairwise

Place = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

GAP, SPACING = 9.0, 6.0
ORDER = (
    *("right middle", "middle above", "middle below", "left middle"),
    *("right above", "right below", "left above", "left below"),
)
"""Sides of a mark, the best-liked first."""


def put(
    marks: Sequence[Place], sizes: Sequence[tuple[float, float]], lines: Sequence[Sequence[Place]], frame: Box
) -> list[Box]:
    """A box of each size (width, height) beside its mark, where it covers least of the marks, the lines and the boxes
    before it, and does not leave the frame.
    """
    taken = [around(mark, GAP - 4) for mark in marks]
    taken += [around(place, 1.5) for line in lines for place in along(line)]
    boxes: list[Box] = []
    for mark, size in zip(marks, sizes, strict=True):
        costs = [
            sum(overlap(box, other) for other in (*taken, *boxes)) + (0.0 if inside(box, frame) else math.inf)
            for box in beside(mark, size)
        ]
        boxes.append(beside(mark, size)[costs.index(min(costs))])
    return boxes


def beside(mark: Place, size: tuple[float, float]) -> list[Box]:
    """The boxes that a label may have, in ORDER."""
    (x, y), (width, height) = mark, size
    columns = {"right": x + GAP, "left": x - GAP - width, "middle": x - width / 2}
    rows = {"middle": y - height / 2, "above": y - GAP - height, "below": y + GAP}
    corners = [(columns[column], rows[row]) for column, row in map(str.split, ORDER)]
    return [(left, top, left + width, top + height) for left, top in corners]


def along(line: Sequence[Place]) -> list[Place]:
    """Places on a line, some pixels apart, without its corners."""
    places = []
    for (x, y), (next_x, next_y) in pairwise(line):
        steps = max(1, round(math.hypot(next_x - x, next_y - y) / SPACING))
        places += [(x + (next_x - x) * i / steps, y + (next_y - y) * i / steps) for i in range(1, steps)]
    return places


def around(place: Place, reach: float) -> Box:
    """A square."""
    return place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def inside(box: Box, frame: Box) -> bool:
    """Whether a box lies in the frame."""
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
