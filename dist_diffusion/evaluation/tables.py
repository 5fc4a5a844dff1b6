"""Metrics as words and tables."""

from collections.abc import Sequence
from typing import Any


def summary(metrics: dict[str, Any]) -> str:
    """The numbers of a point in a few words."""
    judged = "label_agreement" in metrics
    of_judge = (
        f", agreement {metrics['label_agreement']:.3f}, judge's score {metrics['judge_score']:.2f}" if judged else ""
    )
    return (
        f"{distance_name(metrics)} {metrics['fd']:.1f}, score {metrics['score']:.2f}, precision "
        f"{metrics['precision']:.3f}, recall {metrics['recall']:.3f}{of_judge}"
    )


def distance_name(metrics: dict[str, Any]) -> str:
    """What the Fréchet distance is called at its number of samples: FD-lite0@2k."""
    num = metrics["num_samples"]
    return f"{metrics['fd_name']}@{f'{num // 1000}k' if num % 1000 == 0 else num}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page or a terminal."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
