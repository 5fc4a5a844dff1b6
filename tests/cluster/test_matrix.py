"""Every layout is the same run: world sizes x ZeRO stages x accumulation, and one run that goes through all of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cluster.matrix import ACCUMULATIONS, GLOBAL_BATCH, STAGES, Cell, cells
from support import Launcher, column, largest_relative, rows, train_arguments

from dist_diffusion.weights import files
from dist_diffusion.weights.resolve import find

# A launch trains eight runs; four ranks share what may be two cores.
pytestmark = pytest.mark.timeout(600)

STEPS = 50
BOUND = 1e-5
REFERENCE = Cell(world_size=1, stage=0, accumulation=1)
RECIPE = [f"train.steps={STEPS}", f"train.global_batch={GLOBAL_BATCH}", "optim.lr=1e-4", "model.dropout=0"]
RECIPE += ["engine.precision=fp32", "objective.timesteps=uniform"]

Differences = dict[Cell, float]


@pytest.fixture(scope="module")
def folder(workplace: Path) -> Path:
    return workplace / "matrix"


@pytest.fixture(scope="module")
def measured(folder: Path, pytestconfig: pytest.Config) -> Iterator[Differences]:
    """The largest relative difference of a loss by cell, printed and kept once all are there."""
    found: Differences = {}
    yield found
    named = [{**vars(cell), "largest_difference": found[cell]} for cell in found]
    (folder / "differences.json").write_text(json.dumps(named, indent=2))
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table(found)}\n(also in {folder / 'differences.json'})")


@pytest.fixture(scope="module")
def reference(folder: Path, launcher: Launcher, workplace: Path) -> list[dict]:
    """The run of one rank at stage 0, which is among those of the first launch."""
    return cell_rows(folder, launcher, workplace, REFERENCE)


def cell_rows(folder: Path, launcher: Launcher, workplace: Path, cell: Cell) -> list[dict]:
    """A cell's metrics; trains all cells of its world size where that is not done yet."""
    run_dir = folder / cell.name
    if not run_dir.exists():
        arguments = [str(workplace / "diffusion.yaml"), f"data.shards={workplace / 'shards'}", *RECIPE]
        arguments += [f"checkpoint.every={STEPS}", "train.dry_run=false"]
        script = str(Path(__file__).with_name("matrix.py"))
        launcher.run(cell.world_size, str(folder), *arguments, program=[script], limit_s=500)
    return rows(run_dir)


@pytest.mark.parametrize("world_size", ACCUMULATIONS)
def test_every_cell_sees_the_same_batches_and_losses(
    world_size: int,
    folder: Path,
    launcher: Launcher,
    workplace: Path,
    reference: list[dict],
    measured: Differences,
) -> None:
    assert column(reference, "step") == list(range(1, STEPS + 1))
    assert len(set(column(reference, "batch_digest"))) == STEPS
    for cell in cells(world_size):
        found = cell_rows(folder, launcher, workplace, cell)
        assert column(found, "batch_digest") == column(reference, "batch_digest"), cell
        measured[cell] = largest_relative(column(found, "loss"), column(reference, "loss"))
    assert {cell: difference for cell, difference in measured.items() if not difference < BOUND} == {}


def table(measured: Differences) -> str:
    """Ranks and accumulation down, stages across."""
    lines = ["ranks  micro-batches" + "".join(f"  {f'stage {stage}':>7}" for stage in STAGES)]
    for world_size, counts in ACCUMULATIONS.items():
        for count in counts:
            found = [measured.get(Cell(world_size, stage, count)) for stage in STAGES]
            shown = "".join(f"  {'-' if value is None else f'{value:.1e}':>7}" for value in found)
            lines.append(f"{world_size:>5}  {count:>13}{shown}")
    return "\n".join(lines)


def test_one_run_through_many_layouts(folder: Path, launcher: Launcher, workplace: Path, reference: list[dict]) -> None:
    """The same command on 1, 2, 4, 3 ranks at stages 1, 3, 2, 0: as if one rank had done it all, its average too."""
    command = [*train_arguments(workplace, "moved"), *RECIPE, "checkpoint.every=100"]
    for world_size, stage, last in ((1, 1, 13), (2, 3, 26), (4, 2, 38), (3, 0, STEPS)):
        launcher.run(world_size, *command, f"engine.zero_stage={stage}", f"train.steps={last}")
    found = rows(workplace / "moved")
    assert column(found, "step") == list(range(1, STEPS + 1))
    assert column(found, "batch_digest") == column(reference, "batch_digest")
    assert largest_relative(column(found, "loss"), column(reference, "loss")) < BOUND
    exports = [average_of(path) for path in (workplace / "moved", folder / REFERENCE.name)]
    # Where gradients are next to nothing Adam makes much of their rounding, so of single elements little can be said.
    assert torch.dist(*exports) < 5e-5 * exports[1].norm()


def average_of(run_dir: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(files.load(find(str(run_dir), None)).tensors.items())])
