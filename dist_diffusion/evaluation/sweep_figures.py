"""The figures of a sweep: a pure function of its table."""

from collections.abc import Callable, Collection, Mapping, Sequence

from dist_diffusion.evaluation.plots import Curve, Mark, Plot
from dist_diffusion.evaluation.sweep_table import NAMES, Row

STYLES = {"cfg": 0, "classifier": 1, "both": 2}
SHORT_NAMES = {mode: mode for mode in STYLES}
"""Of the small figures' legends."""

Axis = tuple[str, Callable[[Row], float]]
"""What it is called, and its value of a row."""


def trade_off(distance: str, rows: Sequence[Row], continuous: Collection[str]) -> Plot:
    """The Fréchet distance against the score, as the papers show it; the judge's, which knows the model's classes,
    where all rows have it. The curves of `continuous` modes go through the point without guidance.
    """
    return plane(scores(rows)[0], (distance, lambda row: row.fd), distance, rows, continuous, NAMES)


def scores(rows: Sequence[Row]) -> list[Axis]:
    """The scores that all rows have, the most telling first."""
    known: list[Axis] = [("score", lambda row: row.score)]
    if all(row.judge_score is not None for row in rows):
        known.insert(0, ("judge's score", lambda row: row.judge_score or 0.0))
    return known


def others(distance: str, rows: Sequence[Row], continuous: Collection[str]) -> list[Plot]:
    """Each number by scale, and precision against recall."""
    by_scale: list[Axis] = [(distance, lambda row: row.fd), *scores(rows)]
    if all(row.label_agreement is not None for row in rows):
        by_scale.append(("label agreement", lambda row: row.label_agreement or 0.0))
    plots = [over_scale(axis, distance, rows) for axis in by_scale if any(row.scale is not None for row in rows)]
    x, y = ("recall", lambda row: row.recall), ("precision", lambda row: row.precision)
    return [*plots, plane(x, y, distance, rows, continuous, SHORT_NAMES)]


def plane(
    x: Axis, y: Axis, distance: str, rows: Sequence[Row], continuous: Collection[str], names: Mapping[str, str]
) -> Plot:
    """One number against another: a curve a mode, its marks labelled with their scales."""

    def mark(row: Row, label: str) -> Mark:
        return Mark(x[1](row), y[1](row), label, tooltip(distance, row))

    plain = [row for row in rows if row.guidance == "none"]
    curves = []
    for mode, style in STYLES.items():
        of_mode = [row for row in rows if row.guidance == mode]
        if of_mode:
            path = in_order(of_mode, plain if mode in continuous else [])
            curves.append(Curve(names[mode], style, [mark(row, row.scales) for row in path]))
    title = f"{y[0]} against {x[0]}, by guidance scale"
    return Plot(title, x[0], y[0], curves, ringed=[mark(row, row.name) for row in plain])


def in_order(of_mode: Sequence[Row], plain: Sequence[Row]) -> list[Row]:
    """A mode's rows along its scale, with those without guidance at the neutral one; of both in the recipe's order."""
    if of_mode[0].scale is None:
        return list(of_mode)
    neutral = 1.0 if of_mode[0].guidance == "cfg" else 0.0
    return sorted([*plain, *of_mode], key=lambda row: neutral if row.scale is None else row.scale)


def over_scale(y: Axis, distance: str, rows: Sequence[Row]) -> Plot:
    """One number against the scale, of the modes that have one scale; a level for no guidance."""
    curves = []
    for mode in ("cfg", "classifier"):
        of_mode = [row for row in rows if row.guidance == mode]
        marks = [Mark(row.scale, y[1](row), "", tooltip(distance, row)) for row in of_mode if row.scale is not None]
        if marks:
            curves.append(Curve(SHORT_NAMES[mode], STYLES[mode], sorted(marks, key=lambda mark: mark.x)))
    levels = [(y[1](row), row.name) for row in rows if row.guidance == "none"]
    return Plot(f"{y[0]} by scale", "guidance scale", y[0], curves, levels=levels)


def tooltip(distance: str, row: Row) -> str:
    """What is said of a mark under the pointer."""
    agreement = "" if row.label_agreement is None else f", label agreement {row.label_agreement:.3f}"
    of_judge = "" if row.judge_score is None else f", judge's score {row.judge_score:.2f}"
    return (
        f"{row.name}: {distance} {row.fd:.1f}, score {row.score:.2f}, precision {row.precision:.3f}, recall "
        f"{row.recall:.3f}{agreement}{of_judge}, {row.network_evaluations:g} network evaluations an image"
    )
