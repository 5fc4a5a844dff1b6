"""Plots of curves as SVG text: a pure function of their points, without a plotting library.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every curve has its own marker as well. Text and
axes take the colour of the page (currentColor), and the curves' colours are CSS classes, so that a page can be dark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from dist_diffusion.evaluation import plot_labels

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Of the classes stroke-0 and fill-0, stroke-1, ... on white."""
DARK_COLOURS = ("#56b4e9", "#ef8a3c", "#2fc79b", "#e5a3c6")
"""The same on black."""
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
LEFT, RIGHT, TOP, BOTTOM = 62.0, 18.0, 46.0, 48.0
"""Pixels around the axes."""
LABEL_SIZE, LETTER_WIDTH = 11, 6.2
RADIUS = 4.0
ROUND_STEPS = (1, 2, 2.5, 5)


@dataclass(frozen=True)
class Mark:
    """A point of a curve."""

    x: float
    y: float
    label: str
    """Beside it."""
    tooltip: str


@dataclass(frozen=True)
class Curve:
    """Marks joined by lines in their order."""

    name: str
    """In the legend."""
    style: int
    """Of colours and markers: 0 to 3."""
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes; one mark at least."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    ringed: Sequence[Mark] = ()
    """Marks that stand out."""
    levels: Sequence[tuple[float, str]] = ()
    """Values of y and their names, each a dashed line across."""

    @property
    def marks(self) -> list[Mark]:
        """All of them; where two are at one place, the ringed one's label is placed first."""
        return [*self.ringed, *(mark for curve in self.curves for mark in curve.marks)]


@dataclass(frozen=True)
class Axes:
    """From values to pixels."""

    x_ticks: list[float]
    y_ticks: list[float]
    width: int
    height: int

    @property
    def frame(self) -> plot_labels.Box:
        """What the axes enclose."""
        return LEFT, TOP, self.width - RIGHT, self.height - BOTTOM

    def place(self, x: float, y: float) -> plot_labels.Place:
        """Where values lie in the SVG."""
        left, top, right, bottom = self.frame
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def places(self, marks: Sequence[Mark]) -> list[plot_labels.Place]:
        """Where marks lie."""
        return [self.place(mark.x, mark.y) for mark in marks]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Two to `most` round values at equal distances, the first <= low and the last >= high."""
    if high <= low:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    power = math.floor(math.log10((high - low) / most))
    steps = (round_step * 10.0**exponent for exponent in (power, power + 1, power + 2) for round_step in ROUND_STEPS)
    # The tolerance is for values that are ticks but for rounding.
    ranges = ((step, math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)) for step in steps)
    step, first, last = next(found for found in ranges if found[2] - found[1] < most)
    # 3 * 0.1 would be 0.30000000000000004.
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def svg(plot: Plot, width: int = 860, height: int = 460, standalone: bool = False) -> str:
    """The whole <svg>. `standalone` gives it a white ground and dark text, for a file that is shown anywhere."""
    xs, ys = [mark.x for mark in plot.marks], [*(mark.y for mark in plot.marks), *(y for y, _ in plot.levels)]
    axes = Axes(ticks(min(xs), max(xs)), ticks(min(ys), max(ys)), width, height)
    colour = ' color="#222222"' if standalone else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"{colour} fill="currentColor" font-family="{FONT}" font-size="12">',
        f"<title>{escape(plot.title)}</title>",
        *([f'<rect width="{width}" height="{height}" fill="#ffffff"/>'] if standalone else []),
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="600">{escape(plot.title)}</text>',
        *_grid(axes),
        *_axis_names(axes, plot),
        *_legend(plot.curves),
        *(_level(axes, y, name) for y, name in plot.levels),
        *(_line(axes, curve) for curve in plot.curves),
        *(_marker(axes, mark, curve.style) for curve in plot.curves for mark in curve.marks),
        *(_ring(axes, mark) for mark in plot.ringed),
        *_labels(axes, plot),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(axes: Axes) -> Iterator[str]:
    left, top, right, bottom = axes.frame
    for value in axes.x_ticks:
        x, _ = axes.place(value, axes.y_ticks[0])
        yield f'<path d="M{x:.1f} {top:g}V{bottom:g}" stroke="currentColor" stroke-opacity="0.13"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17:g}" text-anchor="middle">{value:g}</text>'
    for value in axes.y_ticks:
        _, y = axes.place(axes.x_ticks[0], value)
        yield f'<path d="M{left:g} {y:.1f}H{right:g}" stroke="currentColor" stroke-opacity="0.13"/>'
        yield f'<text x="{left - 7:g}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _axis_names(axes: Axes, plot: Plot) -> list[str]:
    left, top, right, bottom = axes.frame
    turned = f'transform="translate(15 {(top + bottom) / 2:g}) rotate(-90)"'
    return [
        f'<path d="M{left:g} {top:g}V{bottom:g}H{right:g}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>',
        f'<text x="{(left + right) / 2:g}" y="{bottom + 38:g}" text-anchor="middle">{escape(plot.x_label)}</text>',
        f'<text {turned} text-anchor="middle">{escape(plot.y_label)}</text>',
    ]


def _legend(curves: Sequence[Curve]) -> Iterator[str]:
    x, y = LEFT, 32.0
    for curve in curves:
        yield f'<path class="stroke-{curve.style}" d="M{x:.1f} {y:g}h22" {_stroke(curve.style)}/>'
        yield _shape(x + 11, y, curve.style)
        yield f'<text x="{x + 28:.1f}" y="{y + 4:g}">{escape(curve.name)}</text>'
        x += 28 + len(curve.name) * LETTER_WIDTH + 24


def _line(axes: Axes, curve: Curve) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in axes.places(curve.marks))
    return f'<path class="stroke-{curve.style}" d="M{path}" fill="none" {_stroke(curve.style)}/>'


def _level(axes: Axes, value: float, name: str) -> str:
    left, _, right, _ = axes.frame
    _, y = axes.place(axes.x_ticks[0], value)
    line = f'<path d="M{left:g} {y:.1f}H{right:g}" stroke="currentColor" stroke-opacity="0.7" stroke-dasharray="5 4"/>'
    text = f'<text x="{right - 4:g}" y="{y - 5:.1f}" text-anchor="end" font-size="{LABEL_SIZE}">{escape(name)}</text>'
    return f"{line}{text}"


def _stroke(style: int) -> str:
    return f'stroke="{COLOURS[style]}" stroke-width="2"'


def _marker(axes: Axes, mark: Mark, style: int) -> str:
    return f"<g><title>{escape(mark.tooltip)}</title>{_shape(*axes.place(mark.x, mark.y), style)}</g>"


def _shape(x: float, y: float, style: int) -> str:
    """A circle, square, triangle or diamond about (x, y)."""
    r = RADIUS
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z",
        f"M{x:.1f} {y - 1.3 * r:.1f}L{x + 1.2 * r:.1f} {y + r:.1f}H{x - 1.2 * r:.1f}z",
        f"M{x:.1f} {y - 1.4 * r:.1f}L{x + 1.4 * r:.1f} {y:.1f}L{x:.1f} {y + 1.4 * r:.1f}L{x - 1.4 * r:.1f} {y:.1f}z",
    )
    return f'<path class="fill-{style}" d="{shapes[style]}" fill="{COLOURS[style]}"/>'


def _ring(axes: Axes, mark: Mark) -> str:
    x, y = axes.place(mark.x, mark.y)
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS + 3:g}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    )
    return f"<g><title>{escape(mark.tooltip)}</title>{ring}</g>"


def _labels(axes: Axes, plot: Plot) -> Iterator[str]:
    labelled = [mark for mark in plot.marks if mark.label]
    sizes = [(len(mark.label) * LETTER_WIDTH, LABEL_SIZE + 2.0) for mark in labelled]
    lines = [axes.places(curve.marks) for curve in plot.curves]
    for mark, (left, _, _, bottom) in zip(
        labelled, plot_labels.put(axes.places(labelled), sizes, lines, axes.frame), strict=True
    ):
        yield f'<text x="{left:.1f}" y="{bottom - 3:.1f}" font-size="{LABEL_SIZE}">{escape(mark.label)}</text>'
