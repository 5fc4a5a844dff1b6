"""Run by mpirun on 2 ranks: the engine at every ZeRO stage and precision, saved and restored across them."""

import os
import sys

import torch

from dist_diffusion import draws
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    CheckpointOptions,
    DataOptions,
    DiffusionRecipe,
    EmaOptions,
    EngineOptions,
    OptimOptions,
    TrainOptions,
)
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.environment import resolve as resolve_environment
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.models.build import build
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.storage import committed
from dist_diffusion.weights.load import load_model

SAVED, LAST = 3, 5
BATCH = 8


def recipe_of(stage: int, precision: str) -> DiffusionRecipe:
    model = UNetOptions(channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), num_heads=1)
    recipe = DiffusionRecipe(
        data=DataOptions(image_size=8),
        model=model,
        optim=OptimOptions(lr=1e-3, clip_norm=1.0),
        train=TrainOptions(steps=LAST, global_batch=BATCH, micro_batch=2),
        ema=EmaOptions(decays=(0.5, 0.9)),
        engine=EngineOptions(zero_stage=stage, precision=precision),  # type: ignore[arg-type]
        checkpoint=CheckpointOptions(export=("ema_0", "weights")),
    )
    return resolve(recipe, num_classes=3)


def make_engine(recipe: DiffusionRecipe, group: Group) -> TrainingEngine:
    torch.manual_seed(0)
    model = build(recipe.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return TrainingEngine(model, recipe, group)


def advance(engine: TrainingEngine, group: Group, step: int, poison: bool = False) -> tuple[float, bool]:
    """One step on data that depends on the position alone; `poison` spoils one micro-batch of rank 1."""
    micros = BATCH // group.world_size // 2

    def loss_of(i: int) -> torch.Tensor:
        first = step * BATCH + (group.rank * micros + i) * 2
        x = torch.stack([draws.normal(0, "x", first + j, (3, 8, 8)) for j in range(2)])
        target = torch.stack([draws.normal(0, "y", first + j, (6, 8, 8)) for j in range(2)])
        loss = (engine(x, torch.tensor([1.0, 500.0]), torch.tensor([0, 2])).float() - target).pow(2).mean()
        return loss * float("nan") if poison and group.rank == 1 and i == 0 else loss

    result = engine.step(step, micros, loss_of)
    total = result.loss.clone()
    torch.distributed.all_reduce(total)
    assert (result.grad_norm is not None) == result.applied
    return total.item() / group.world_size, result.applied


def advance_to_the_end(engine: TrainingEngine, group: Group) -> list[float]:
    return [advance(engine, group, step)[0] for step in range(SAVED, LAST)]


def train_and_save(folder: str, stage: int, precision: str, group: Group) -> list[float]:
    recipe = recipe_of(stage, precision)
    engine = make_engine(recipe, group)
    has_full_masters = precision == "fp32" and stage < 3
    averages, before = full_parameters(engine), []
    for step in range(SAVED):
        before.append(advance(engine, group, step)[0])
        if has_full_masters:
            averages = [a.lerp(p, 0.5) for a, p in zip(averages, full_parameters(engine), strict=True)]
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    checkpointer.save(engine, SAVED, {"note": "kept"}, None)
    outcome = checkpointer.settle()
    assert outcome.error is None, outcome
    if has_full_masters:
        check_export(folder, averages)
    return before + advance_to_the_end(engine, group)


def attempt(group: Group) -> str:
    held = [committed.new_attempt()]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def resume(folder: str, stage: int, precision: str, group: Group) -> list[float]:
    recipe = recipe_of(stage, precision)
    engine = make_engine(recipe, group)
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    commit, damaged = checkpointer.newest()
    assert (
        commit is not None
        and not damaged
        and commit.marker["step"] == SAVED
        and commit.marker["extra"] == {"note": "kept"}
    )
    checkpointer.restore(engine, commit)
    return advance_to_the_end(engine, group)


def largest_relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def full_parameters(engine: TrainingEngine) -> list[torch.Tensor]:
    return [p.detach().clone() for p in engine.deepspeed.module.parameters()]


def check_export(folder: str, averages: list[torch.Tensor]) -> None:
    """The export, assembled from the ranks' slices, is the average of the full parameters."""
    path = committed.scan(folder)[0].path
    ema, weights = (load_model(f"{path}/export-{name}.safetensors").module for name in ("ema_0", "weights"))
    # Not to the last bit: a vectorised lerp rounds by where in a vector an element lies.
    torch.testing.assert_close(list(ema.parameters()), averages, atol=1e-7, rtol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(weights.parameters(), averages, strict=True))


def check_nonfinite(stage: int, group: Group) -> None:
    """A NaN on one rank holds the update back on both, and the next step goes on as if it had not been."""
    engine = make_engine(recipe_of(stage, "fp32"), group)
    advance(engine, group, 0)
    ema = [value.clone() for values in engine.ema.values.values() for value in values]
    masters = [shard.master.detach().clone() for shard in engine.ema.shards]
    _, applied = advance(engine, group, 1, poison=True)
    assert not applied, f"stage {stage} applied a NaN"
    after = [value for values in engine.ema.values.values() for value in values]
    assert all(torch.equal(a, b) for a, b in zip(ema, after, strict=True))
    assert all(torch.equal(a, s.master) for a, s in zip(masters, engine.ema.shards, strict=True))
    loss, applied = advance(engine, group, 2)
    assert applied and loss == loss


def check_save_before_the_first_update(folder: str, stage: int, group: Group) -> None:
    """A run whose steps were all held back can be saved and restored: it has no moments yet."""
    engine = make_engine(recipe_of(stage, "fp32"), group)
    assert not advance(engine, group, 0, poison=True)[1]
    recipe = recipe_of(stage, "fp32")
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    checkpointer.save(engine, SAVED, {"note": "kept"}, None)
    outcome = checkpointer.settle()
    assert outcome.error is None, outcome
    continued = advance_to_the_end(engine, group)
    assert resume(folder, stage, "fp32", group) == continued


def check_a_failing_save(folder: str, group: Group) -> None:
    """A rank that cannot write fails the save on all; its folder goes, training goes on, the next save commits."""
    recipe = recipe_of(1, "fp32")
    engine = make_engine(recipe, group)
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    blocked = f"{checkpointer.folder_of(1)}/rank-00001.safetensors"
    if group.rank == 0:
        os.makedirs(blocked)
    torch.distributed.barrier()
    checkpointer.save(engine, 1, {}, None)
    outcome = checkpointer.settle()
    assert outcome.error is not None and "rank-00001.safetensors" in outcome.error, outcome
    assert not os.path.exists(checkpointer.folder_of(1))
    torch.distributed.barrier()  # the other rank looks before the next save makes the folder again
    checkpointer.save(engine, 1, {}, None)
    assert checkpointer.settle().error is None
    assert [found.name for found in committed.scan(folder)] == ["step-000000001"]


def main(folder: str) -> None:
    group = groups.start(resolve_environment(os.environ), timeout_s=60)
    torch.set_num_threads(1)
    cases = [
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (3, "fp32"),
        (1, "autocast"),
        (0, "autocast"),
        (2, "bf16"),
        (3, "bf16"),
    ]
    curves = {case: train_and_save(f"{folder}/{case[0]}-{case[1]}", *case, group) for case in cases}
    for stage in (1, 2, 3):
        assert largest_relative(curves[stage, "fp32"], curves[0, "fp32"]) < 1e-5, curves
    for saved in cases:
        resumed = resume(f"{folder}/{saved[0]}-{saved[1]}", *saved, group)
        assert resumed == curves[saved][SAVED:], f"{saved}: {resumed} is not {curves[saved][SAVED:]}"
    for saved, stage in [(0, 1), (1, 3), (3, 2), (2, 0)]:
        resumed = resume(f"{folder}/{saved}-fp32", stage, "fp32", group)
        assert largest_relative(resumed, curves[stage, "fp32"][SAVED:]) < 1e-5
    for stage in range(4):
        check_nonfinite(stage, group)
        check_save_before_the_first_update(f"{folder}/early-{stage}", stage, group)
    check_a_failing_save(f"{folder}/blocked", group)
    if group.rank == 0:
        print("all engine checks passed", flush=True)
    groups.stop()


if __name__ == "__main__":
    main(sys.argv[1])
