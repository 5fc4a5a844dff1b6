"""Run by mpirun on 2 ranks: the engine at every ZeRO stage and precision, saved and restored across them."""

import dataclasses
import os
import sys

import numpy as np
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
from dist_diffusion.engine.backend import deepspeed
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.drift import check_replicas
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import DriftError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.storage import committed
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.profiles import Profile, exponent
from dist_diffusion.weights.profiles import weights as weights_of

SAVED, LAST = 3, 5
BATCH = 8


def recipe_of(stage: int, precision: str) -> DiffusionRecipe:
    """`precision` may end in "+offload"."""
    precision, _, offload = precision.partition("+")
    model = UNetOptions(channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), num_heads=1)
    recipe = DiffusionRecipe(
        data=DataOptions(image_size=8),
        model=model,
        optim=OptimOptions(lr=1e-3, clip_norm=1.0),
        train=TrainOptions(steps=LAST, global_batch=BATCH, micro_batch=2),
        ema=EmaOptions(decays=(0.5, 0.9), stds=(0.1,)),
        engine=EngineOptions(zero_stage=stage, precision=precision, offload_optimizer=bool(offload)),  # type: ignore[arg-type]
        checkpoint=CheckpointOptions(export=("ema_0", "std_0.1", "weights")),
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
    averages, profile, before = full_parameters(engine), [], []
    for step in range(SAVED):
        before.append(advance(engine, group, step)[0])
        if has_full_masters:
            averages = [a.lerp(p, 0.5) for a, p in zip(averages, full_parameters(engine), strict=True)]
            profile.append(full_parameters(engine))
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    checkpointer.save(engine, SAVED, {"note": "kept"}, None)
    outcome = checkpointer.settle()
    assert outcome.error is None, outcome
    if has_full_masters:
        check_export(folder, averages, profile)
    return before + advance_to_the_end(engine, group)


def attempt(group: Group) -> str:
    held = [committed.new_attempt()]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def resume(folder: str, stage: int, precision: str, group: Group) -> list[float]:
    recipe = recipe_of(stage, precision)
    engine = make_engine(recipe, group)
    # As a dry run does: of these steps nothing may be left.
    assert advance(engine, group, LAST)[1] and not advance(engine, group, LAST + 1, poison=True)[1]
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    commit, damaged = checkpointer.newest()
    assert (
        commit is not None
        and not damaged
        and commit.marker["step"] == SAVED
        and commit.marker["extra"] == {"note": "kept"}
    )
    checkpointer.restore(engine, commit.path, commit.marker)
    return advance_to_the_end(engine, group)


def largest_relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def full_parameters(engine: TrainingEngine) -> list[torch.Tensor]:
    return [p.detach().clone() for p in engine.deepspeed.module.parameters()]


def check_export(folder: str, averages: list[torch.Tensor], steps: list[list[torch.Tensor]]) -> None:
    """The exports, assembled from the ranks' slices, are the averages of the full parameters."""
    path = committed.scan(folder)[0].path
    ema, profile, weights = (
        load_model(f"{path}/export-{name}.safetensors").module for name in ("ema_0", "std_0.1", "weights")
    )
    shares = weights_of(Profile(SAVED, exponent(0.1)), np.arange(1, SAVED + 1))
    direct = [sum(share * p for share, p in zip(shares, parts, strict=True)) for parts in zip(*steps, strict=True)]
    torch.testing.assert_close(list(profile.parameters()), direct, atol=1e-7, rtol=1e-6, check_dtype=False)
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


def check_the_loss_scale(folder: str, group: Group) -> None:
    """It is halved at an overflow down to the floor, where the run does not end by itself, and is checkpointed."""
    recipe = recipe_of(2, "fp16")
    recipe = dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, loss_scale=4, loss_scale_floor=2))
    engine = make_engine(recipe, group)
    assert advance(engine, group, 0)[1] and engine.loss_scale == 4
    for step, is_at_the_floor in ((1, False), (2, True)):
        assert engine.at_the_floor(engine.loss_scale) == is_at_the_floor
        assert not advance(engine, group, step, poison=True)[1]
        assert engine.loss_scale == 2
    checkpointer = Checkpointer(folder, recipe, group, attempt(group), print, may_write=lambda: True)
    checkpointer.save(engine, SAVED, {"note": "kept"}, None)
    assert checkpointer.settle().error is None
    commit, _ = checkpointer.newest()
    assert commit is not None
    again = make_engine(recipe, group)
    checkpointer.restore(again, commit.path, commit.marker)
    assert again.loss_scale == 2 and again.scaler.cur_iter == engine.scaler.cur_iter == SAVED
    assert again.updates == 1


def check_nesterov(group: Group) -> None:
    """The one optimizer whose update is not torch's own, with flat partitions, on the host, and with each by itself."""
    curves = []
    for stage, precision in ((0, "fp32"), (1, "fp32+offload"), (3, "fp32")):
        recipe = recipe_of(stage, precision)
        recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, name="nadamw", weight_decay=0.1))
        engine = make_engine(recipe, group)
        curves.append([advance(engine, group, step)[0] for step in range(LAST)])
    assert max(largest_relative(curve, curves[0]) for curve in curves[1:]) < 1e-5, curves


def check_drift(group: Group) -> None:
    """A bit that flips in one rank's replica is noticed by both, with rank and parameter."""
    engine = make_engine(recipe_of(0, "fp32"), group)
    advance(engine, group, 0)
    check_replicas(engine, group, 1)
    name, parameter = list(engine.deepspeed.module.named_parameters())[3]
    if group.rank == 1:
        parameter.data.view(-1)[0] *= 1 + 1e-6
    try:
        check_replicas(engine, group, 2)
    except DriftError as error:
        assert "rank 1 " in str(error) and name in str(error) and error.agreed, error
    else:
        raise AssertionError("a drifted replica went unnoticed")


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
        (1, "bf16"),
        (2, "bf16"),
        (3, "bf16"),
        (1, "fp32+offload"),
        (2, "bf16+offload"),
        (3, "fp32+offload"),
        (1, "fp16"),
        (3, "fp16"),
        (2, "fp16+offload"),
    ]
    # A CPU can be asked for fp16, only slowly.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True

    curves = {case: train_and_save(f"{folder}/{case[0]}-{case[1]}", *case, group) for case in cases}
    for stage in (1, 2, 3):
        assert largest_relative(curves[stage, "fp32"], curves[0, "fp32"]) < 1e-5, curves
    for saved in cases:
        resumed = resume(f"{folder}/{saved[0]}-{saved[1]}", *saved, group)
        assert resumed == curves[saved][SAVED:], f"{saved}: {resumed} is not {curves[saved][SAVED:]}"
    for saved, stage in [("0-fp32", 1), ("1-fp32", 3), ("3-fp32+offload", 2), ("2-fp32", 0), ("1-fp32+offload", 3)]:
        resumed = resume(f"{folder}/{saved}", stage, "fp32", group)
        assert largest_relative(resumed, curves[stage, "fp32"][SAVED:]) < 1e-5
    resumed = resume(f"{folder}/1-fp16", 1, "fp32", group)  # another precision: no loss scale to take over
    assert largest_relative(resumed, curves[1, "fp32"][SAVED:]) < 1e-2
    check_the_loss_scale(f"{folder}/scale", group)
    check_nesterov(group)
    check_drift(group)
    for stage in range(4):
        check_nonfinite(stage, group)
        check_save_before_the_first_update(f"{folder}/early-{stage}", stage, group)
    check_a_failing_save(f"{folder}/blocked", group)
    if group.rank == 0:
        print("all engine checks passed", flush=True)
    groups.stop()


if __name__ == "__main__":
    main(sys.argv[1])
