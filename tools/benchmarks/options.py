"""What each engine option costs or gains: the peer is the same step without it."""

import statistics
from typing import Any

from benchmarks.ranks import NUM_RANKS, report_of
from benchmarks.setting import BATCH
from benchmarks.timing import Row, compared
from dist_diffusion.config.schema import EngineOptions

PLAIN = "plain"
MIB = 2**20


def bench_options(seconds: float, threads: int) -> list[Row]:
    """Of whole steps where an option concerns all of it; else the part is timed alone and added to the plain step."""
    found = report_of("options_ranks", NUM_RANKS, threads, str(seconds))
    steps = found["steps"]
    return [
        *(compared(f"training step, {name}", BATCH, steps[name], steps[PLAIN]) for name in steps if name != PLAIN),
        *part_rows(found["parts"], steps[PLAIN]),
        activations_row(found["activations"]),
    ]


def bench_compile(seconds: float, threads: int) -> list[Row]:
    """One process, a small network: the step, and how much longer the first one takes."""
    found = report_of("compile_step", 1, threads, str(seconds))
    steps = found["steps"]
    first, usual = found["first"], statistics.median(steps["peer"])
    return [
        compared("training step, engine.compile=true; small network, one process", BATCH, steps["ours"], steps["peer"]),
        Row(
            "first step, engine.compile=true; small network, one process",
            *(first, usual),
            *((first, first), (min(steps["peer"]), max(steps["peer"]))),
            unit="s",
            less_is_better=True,
        ),
    ]


def part_rows(parts: dict[str, float], plain: list[float]) -> list[Row]:
    """Of what is too small to be seen in whole steps."""
    step = statistics.median(plain)
    update = parts["1 average"]
    costs = {
        "1 average": update,
        "4 averages": parts["4 averages"],
        "drift check, every 1000 steps": parts["drift check"] / EngineOptions().drift_check_every,
        "watchdog": parts["whereabouts"] + parts["watchdog"] * step,
    }
    for name, cost in costs.items():
        print(f"{name}: {1000 * cost:.3f} ms a step", flush=True)
    return [added_row(f"training step, {name}; the part timed alone", costs[name], step - update) for name in costs]


def added_row(name: str, cost: float, bare: float) -> Row:
    """Milliseconds of a step with the part and without it."""
    ours, peer = 1000 * (bare + cost), 1000 * bare
    return Row(name, ours, peer, (ours, ours), (peer, peer), unit="ms", less_is_better=True)


def activations_row(found: dict[str, Any]) -> Row:
    """Of a forward and backward pass, most at once."""
    again, kept = found["again"] / MIB, found["kept"] / MIB
    name = "activations, engine.recompute=true; peer: kept"
    return Row(name, again, kept, (again, again), (kept, kept), unit="MiB", less_is_better=True)
