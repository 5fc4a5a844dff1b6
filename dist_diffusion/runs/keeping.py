"""Which commits stay, by their steps, the recipe and what they were worth."""

from collections.abc import Iterable, Mapping

from dist_diffusion.config.schema import CheckpointOptions
from dist_diffusion.runs.rows import rows
from dist_diffusion.storage import files


def kept(steps: Iterable[int], options: CheckpointOptions, scores: Mapping[int, float]) -> set[int]:
    """The newest `keep`, the multiples of `keep_every`, and the best of those that have a score."""
    ascending = sorted(steps)
    if not options.keep:
        return set(ascending)
    stay = set(ascending[-options.keep :])
    if options.keep_every is not None:
        stay |= {step for step in ascending if step % options.keep_every == 0}
    found = best(ascending, scores, options.best_is)
    return stay if found is None else stay | {found}


def best(steps: Iterable[int], scores: Mapping[int, float], best_is: str) -> int | None:
    """The step of the lowest or highest score, the later one of equals; None where no step has one."""
    sign = 1 if best_is == "highest" else -1
    scored = [(sign * scores[step], step) for step in steps if step in scores]
    return max(scored)[1] if scored else None


def scores(path: str, column: str | None) -> dict[int, float]:
    """What validated commits are worth by a column of validation.jsonl, by step; nothing without a column or a file."""
    if column is None or not files.exists(path):
        return {}
    found = rows(files.read_bytes(path).splitlines())
    return {row["step"]: row[column] for row in found if row.get(column) is not None}
