"""Plots: round ticks that cover, SVG that parses, labels that do not lie on each other."""

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dist_diffusion.evaluation import plot_labels
from dist_diffusion.evaluation.plots import COLOURS, Axes, Curve, Mark, Plot, svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_ticks_are_round_few_and_cover() -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        low = generator.normal() * 10.0 ** generator.integers(-4, 5)
        high = low + abs(generator.normal()) * 10.0 ** generator.integers(-4, 5)
        found = ticks(low, high)
        assert found[0] <= low and high <= found[-1] and 2 <= len(found) <= 7
        step = found[1] - found[0]
        assert np.allclose(np.diff(found), step, rtol=1e-3)
        digits = step / 10.0 ** math.floor(math.log10(step))
        assert min(abs(digits - round_step) for round_step in (1, 2, 2.5, 5, 10)) < 1e-3
        # Not wasteful: another step would not fit at each end.
        assert found[1] > low and found[-2] < high


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 6, [0, 1, 2, 3, 4, 5, 6]),
        (0.1, 0.3, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (537, 610, [520, 540, 560, 580, 600, 620]),
        (3, 3, [1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_some_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def curve(style: int, marks: list[tuple[float, float]]) -> Curve:
    return Curve(f"curve {style}", style, [Mark(x, y, f"s{x:g}", f"at {x:g}") for x, y in marks])


def test_the_svg_has_every_mark_label_and_tooltip() -> None:
    curves = [curve(0, [(1, 5), (2, 3), (4, 9)]), curve(1, [(1, 5), (3, 4)])]
    plot = Plot("a < b & c", "x", "<y>", curves, ringed=[Mark(1, 5, "start", "the start")], levels=[(7, "a level")])
    root = ElementTree.fromstring(svg(plot))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"a < b & c", "x", "<y>", "curve 0", "curve 1", "s1", "s2", "s4", "s3", "start", "a level"} <= set(texts)
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert titles == ["a < b & c", "at 1", "at 2", "at 4", "at 1", "at 3", "the start"]
    lines = [path for path in root.iter(f"{SVG}path") if path.get("fill") == "none" and path.get("class")]
    assert [path.get("stroke") for path in lines] == list(COLOURS[:2])
    assert [len(re.findall("[ML]", path.get("d") or "")) for path in lines] == [3, 2]


def test_larger_values_lie_to_the_right_and_higher() -> None:
    axes = Axes([0.0, 10.0], [-1.0, 1.0], 700, 400)
    left, top, right, bottom = axes.frame
    assert axes.place(0, -1) == (left, bottom) and axes.place(10, 1) == (right, top)
    assert axes.place(5, 0) == pytest.approx(((left + right) / 2, (top + bottom) / 2))


def test_a_file_brings_its_own_ground_and_a_page_its_colours() -> None:
    plot = Plot("t", "x", "y", [curve(0, [(1, 2)])])
    alone, inside = ElementTree.fromstring(svg(plot, standalone=True)), ElementTree.fromstring(svg(plot))
    assert alone.get("color") and [rect.get("fill") for rect in alone.iter(f"{SVG}rect")] == ["#ffffff"]
    assert inside.get("color") is None and not list(inside.iter(f"{SVG}rect"))
    assert inside.get("fill") == "currentColor"


def test_a_plot_of_one_ringed_mark() -> None:
    root = ElementTree.fromstring(svg(Plot("t", "x", "y", [], ringed=[Mark(20, 500, "none", "none")])))
    assert len(list(root.iter(f"{SVG}circle"))) == 1


def test_labels_keep_clear_of_each_other_where_there_is_room() -> None:
    frame = (0.0, 0.0, 400.0, 300.0)
    marks = [(5.0, 5.0), (395.0, 5.0), (200.0, 150.0), (206.0, 152.0), (203.0, 290.0), (395.0, 295.0)]
    boxes = plot_labels.put(marks, [(40.0, 13.0)] * len(marks), [marks[2:5]], frame)
    assert all(plot_labels.inside(box, frame) for box in boxes)
    assert all(plot_labels.overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    covered = [plot_labels.overlap(box, plot_labels.around(mark, 3)) for box in boxes for mark in marks]
    assert max(covered) == 0


def test_a_label_that_fits_nowhere_is_put_all_the_same() -> None:
    assert len(plot_labels.put([(5.0, 5.0)], [(40.0, 13.0)], [], (0.0, 0.0, 10.0, 10.0))) == 1
