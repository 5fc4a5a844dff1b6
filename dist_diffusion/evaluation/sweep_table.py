"""The points of a sweep as a table."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dist_diffusion.evaluation.tables import markdown

NAMES = {
    "none": "no guidance",
    "cfg": "classifier-free guidance",
    "classifier": "classifier guidance",
    "both": "both (cfg + classifier)",
}
"""What the modes are called."""


@dataclass(frozen=True)
class Row:
    """A point's line of table.json."""

    guidance: str
    cfg_scale: float | None
    """None where the mode does not use it."""
    classifier_scale: float | None
    fd: float
    kid: float
    score: float
    precision: float
    recall: float
    label_agreement: float | None
    """None without a judge, and then left out."""
    judge_score: float | None
    """As label_agreement."""
    network_evaluations: float
    """An image."""
    classifier_evaluations: float
    seconds: float
    """Summed over ranks."""
    images_per_second: float
    """Of one rank."""

    @property
    def scale(self) -> float | None:
        """Of the modes that have one."""
        return {"cfg": self.cfg_scale, "classifier": self.classifier_scale}.get(self.guidance)

    @property
    def scales(self) -> str:
        """In a few letters: "1.5", or of both "1.5 + 2"."""
        return " + ".join(f"{scale:g}" for scale in (self.cfg_scale, self.classifier_scale) if scale is not None)

    @property
    def name(self) -> str:
        """Mode and scales."""
        return f"{self.guidance} {self.scales}" if self.scales else NAMES[self.guidance]

    def as_dict(self) -> dict[str, Any]:
        """As table.json has it."""
        content = dataclasses.asdict(self)
        if self.label_agreement is None:
            del content["label_agreement"], content["judge_score"]
        return content


Column = tuple[str, Callable[[Row], str]]
"""Its heading, and a row's cell."""


def columns(distance: str, rows: Sequence[Row]) -> list[Column]:
    """The table's, with the distance's own name; without the judge's where there is none."""
    judged = any(row.label_agreement is not None for row in rows)
    of_judge: list[Column] = [
        ("label agreement", lambda row: _or_dash(row.label_agreement, ".3f")),
        ("judge's score", lambda row: _or_dash(row.judge_score, ".2f")),
    ]
    return [
        ("guidance", lambda row: row.guidance),
        ("cfg scale", lambda row: _or_dash(row.cfg_scale, "g")),
        ("classifier scale", lambda row: _or_dash(row.classifier_scale, "g")),
        (distance, lambda row: f"{row.fd:.1f}"),
        ("KID", lambda row: f"{row.kid:.4f}"),
        ("score", lambda row: f"{row.score:.2f}"),
        ("precision", lambda row: f"{row.precision:.3f}"),
        ("recall", lambda row: f"{row.recall:.3f}"),
        *(of_judge if judged else []),
        ("network evaluations", lambda row: f"{row.network_evaluations:g}"),
        ("classifier evaluations", lambda row: f"{row.classifier_evaluations:g}"),
        ("seconds", lambda row: f"{row.seconds:.1f}"),
        ("images/s", lambda row: f"{row.images_per_second:.1f}"),
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def in_markdown(distance: str, rows: Sequence[Row]) -> str:
    """The whole table."""
    shown = columns(distance, rows)
    return markdown([name for name, _ in shown], [[cell(row) for _, cell in shown] for row in rows])
