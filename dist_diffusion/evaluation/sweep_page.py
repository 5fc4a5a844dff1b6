"""The page of a sweep: one HTML file that needs nothing else, a pure function of the table and the images."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from dist_diffusion.evaluation import sweep_figures
from dist_diffusion.evaluation.plots import DARK_COLOURS, svg
from dist_diffusion.evaluation.sweep_table import NAMES, Row, columns
from dist_diffusion.observe import grids

SMALL_WIDTH, SMALL_HEIGHT = 460, 330
"""Of the figures beside each other."""
CELL, LARGEST_CELL = 64, 128
"""Pixels of an image on the page: small ones are enlarged to the first, large ones reduced to the second."""
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2em } h3 { font-size: 1em }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1.2em }
dt { color: #777 } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1em 0 } svg { max-width: 100%; height: auto }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 0 1.5em }
.warning { border-left: 3px solid #d55e00; padding-left: .8em }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25em .45em; text-align: right } th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 1px solid #999; vertical-align: bottom }
.points td { border-top: 1px solid #8883 } .best { font-weight: 700 }
.grid th { font-weight: 400; white-space: nowrap } .grid td { padding: 1px 0 }
.grid img { display: block; image-rendering: pixelated } .labels { display: flex }
.labels span { font-size: 11px; text-align: center; overflow: hidden; text-overflow: ellipsis; flex: none }
"""
FOOT = (
    "A scale s of classifier-free guidance means uncond + s (cond - uncond): 1 is no guidance. A classifier's gradient "
    "is multiplied by its scale: 0 is no guidance. Evaluations are an image's passes through networks: forward through "
    "diffusion networks, forward and backward through the classifier. Seconds are of making the images, summed over "
    "ranks; images/s are of one rank."
)


@dataclass(frozen=True)
class Facts:
    """What all points have in common."""

    distance: str
    """The name of the Fréchet distance: FD-lite0@2k."""
    lines: Sequence[tuple[str, str]]
    """Names and texts."""
    warnings: Sequence[str]
    classes: Sequence[str]
    """Names of the labels; empty where they are not known."""
    continuous: Collection[str]
    """The modes whose curves begin without guidance."""


@dataclass(frozen=True)
class Strip:
    """The same images (index, label, noise) of each point."""

    images: np.ndarray
    """uint8 NHWC."""
    labels: Sequence[int] | None


def page(facts: Facts, rows: Sequence[Row], strips: Sequence[Strip]) -> str:
    """The whole file. `strips` are the rows' images, or none at all."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.lines)
    warnings = "".join(f'<p class="warning">{escape(text)}</p>\n' for text in facts.warnings)
    small = sweep_figures.others(facts.distance, rows, facts.continuous)
    figures = "".join(f"<figure>{svg(plot, SMALL_WIDTH, SMALL_HEIGHT)}</figure>\n" for plot in small)
    main = svg(sweep_figures.trade_off(facts.distance, rows, facts.continuous))
    dark = "".join(f".stroke-{i} {{ stroke: {c} }} .fill-{i} {{ fill: {c} }}\n" for i, c in enumerate(DARK_COLOURS))
    dark = f"@media (prefers-color-scheme: dark) {{\nbody {{ color: #ddd; background: #161616 }}\n{dark}}}\n"
    grid = f"<h2>The same images at every point</h2>\n{_grids(facts, rows, strips)}" if strips else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Guidance sweep</title>
<style>{CSS}{dark}</style></head>
<body>
<h1>Guidance sweep</h1>
<dl>
{lines}</dl>
{warnings}<figure>{main}</figure>
<div class="plots">
{figures}</div>
{grid}<h2>The points</h2>
{_table(facts, rows)}<p>{escape(FOOT)}</p>
</body>
</html>
"""


def _table(facts: Facts, rows: Sequence[Row]) -> str:
    """The row of the lowest distance in bold."""
    shown, best = columns(facts.distance, rows), min(row.fd for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in shown)
    lines = ""
    for row in rows:
        kind = ' class="best"' if row.fd == best else ""
        lines += f"<tr{kind}>{''.join(f'<td>{escape(cell(row))}</td>' for _, cell in shown)}</tr>\n"
    table = f'<table class="points"><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table>'
    return f'<div class="wide">{table}</div>\n'


def _grids(facts: Facts, rows: Sequence[Row], strips: Sequence[Strip]) -> str:
    """A grid a mode: a row a point, below the one without guidance."""
    shown = list(zip(rows, strips, strict=True))
    modes = [mode for mode in sweep_figures.STYLES if any(row.guidance == mode for row in rows)] or ["none"]
    parts = []
    for mode in modes:
        chosen = [pair for pair in shown if pair[0].guidance in ("none", mode)]
        parts.append(f"<h3>{escape(NAMES[mode])}</h3>\n{_grid(facts, chosen)}")
    return "".join(parts)


def _grid(facts: Facts, shown: Sequence[tuple[Row, Strip]]) -> str:
    size = shown[0][1].images.shape[1]
    cell = size * max(1, CELL // size) if size <= LARGEST_CELL else LARGEST_CELL
    labels = next((strip.labels for _, strip in shown if strip.labels is not None), ())
    names = [facts.classes[label] if label < len(facts.classes) else str(label) for label in labels]
    spans = "".join(f'<span style="width:{cell}px">{escape(name)}</span>' for name in names)
    lines = [f'<tr><th></th><td class="labels">{spans}</td></tr>\n'] if names else []
    lines += [f"<tr><th>{escape(row.name)}</th><td>{_image(row, strip, cell)}</td></tr>\n" for row, strip in shown]
    return f'<div class="wide"><table class="grid">{"".join(lines)}</table></div>\n'


def _image(row: Row, strip: Strip, cell: int) -> str:
    factor = -(-strip.images.shape[1] // LARGEST_CELL)
    images = np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in strip.images])
    data = base64.b64encode(grids.png_bytes(grids.grid(images, len(images)))).decode()
    size = f'width="{cell * len(images)}" height="{cell}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{escape(row.name)}">'
