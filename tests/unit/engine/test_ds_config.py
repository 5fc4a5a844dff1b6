"""DeepSpeed's dictionary is derived, and nothing unknown reaches it."""

import dataclasses
import math

import pytest
import torch

from dist_diffusion.config.schema import DeepSpeedOptions, DiffusionRecipe, EngineOptions, OptimOptions, TrainOptions
from dist_diffusion.engine.ds_config import ds_config
from dist_diffusion.engine.optimizer import learning_rate, make_optimizer
from dist_diffusion.errors import ConfigError

RECIPE = DiffusionRecipe(train=TrainOptions(global_batch=24, micro_batch=2))


def with_extra(extra: dict) -> DiffusionRecipe:
    return dataclasses.replace(RECIPE, deepspeed=DeepSpeedOptions(extra))


def test_batch_sizes_multiply_for_every_world() -> None:
    for world in (1, 2, 3, 4):
        derived = ds_config(RECIPE, world, 100)
        product = derived["train_micro_batch_size_per_gpu"] * derived["gradient_accumulation_steps"] * world
        assert product == derived["train_batch_size"] == 24


def test_autocast_never_communicates_in_bf16() -> None:
    recipe = dataclasses.replace(RECIPE, engine=EngineOptions(precision="autocast"))
    assert ds_config(recipe, 1, 100)["torch_autocast"]["lower_precision_safe_modules"] == []


def test_extra_is_merged_last_and_deep() -> None:
    derived = ds_config(with_extra({"zero_optimization": {"reduce_bucket_size": 7}, "dump_state": True}), 1, 100)
    assert derived["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 7}
    assert derived["dump_state"] is True


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"train_batch_size": 3}, "set train.global_batch"),
        ({"zero_optimisation": {}}, "zero_optimisation is not a known key"),
        ({"zero_optimization": {"stage": 2}}, "set engine.zero_stage"),
        ({"zero_optimization": 3}, "expected keys and values"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "set engine.offload_optimizer"),
        ({"fp16": {}}, "set engine.precision"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "cannot hold its layout"),
    ],
)
def test_keys_that_the_recipe_decides_or_nobody_knows(extra: dict, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ds_config(with_extra(extra), 1, 100)


def test_learning_rate_warms_up_and_anneals_in_images() -> None:
    options = OptimOptions(lr=1.0, warmup_images=100)
    assert [learning_rate(options, k * 20, 20, 1000) for k in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    annealed = OptimOptions(lr=1.0, decay="linear")
    assert learning_rate(annealed, 0, 20, 1000) == 1.0
    assert learning_rate(annealed, 750, 20, 1000) == 0.25


def test_decays_begin_where_they_are_told_to() -> None:
    images = (0, 400, 700, 999)
    shapes = {
        "linear": [1.0, 1.0, 0.5, 1 / 600],
        "cosine": [1.0, 1.0, 0.5, (1 - math.cos(math.pi / 600)) / 2],
        "inverse_sqrt": [1.0, 1.0, math.sqrt(400 / 700), math.sqrt(400 / 999)],
    }
    for decay, expected in shapes.items():
        options = OptimOptions(lr=1.0, decay=decay, decay_from_images=400)
        assert [learning_rate(options, n, 1, 1000) for n in images] == pytest.approx(expected)


def test_adam_adds_the_decay_to_the_gradients() -> None:
    expected = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, peer in expected.items():
        ours, theirs = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        theirs.load_state_dict(ours.state_dict())
        mine = make_optimizer(ours, OptimOptions(name=name, lr=0.1, weight_decay=0.5))
        other = peer(theirs.parameters(), lr=0.1, weight_decay=0.5, fused=True)
        for module, optimizer in ((ours, mine), (theirs, other)):
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert torch.equal(ours.weight, theirs.weight)


def test_nesterov_momentum_is_torchs_without_its_schedule() -> None:
    """torch.optim.NAdam's momentum decay tends to b1 as momentum_decay tends to none: 0.96^(large) vanishes."""
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = make_optimizer(ours, OptimOptions(name="nadamw", lr=0.1, weight_decay=0.5))
    peer = torch.optim.NAdam(
        theirs.parameters(), lr=0.1, weight_decay=0.5, decoupled_weight_decay=True, momentum_decay=1e9
    )
    for parameter in ours.parameters():
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        mine.state[parameter] = {"step": torch.tensor(0.0), **moments}
    for k in range(4):
        for module, optimizer in ((ours, mine), (theirs, peer)):
            optimizer.zero_grad()
            module(torch.tensor([[1.0, -2.0, k]])).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    mine.apply_updates = False
    before = ours.weight.clone()
    mine.step()
    assert torch.equal(ours.weight, before)


def test_fp16_and_offload_are_derived() -> None:
    engine = EngineOptions(zero_stage=2, precision="fp16", loss_scale=2**10, loss_scale_floor=4, offload_optimizer=True)
    derived = ds_config(DiffusionRecipe(engine=engine), 1, 10**9)
    assert derived["fp16"]["initial_scale_power"] == 10 and derived["fp16"]["min_loss_scale"] == 4
    assert derived["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 50_000_000,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }
    assert ds_config(DiffusionRecipe(engine=engine), 1, 7)["zero_optimization"]["reduce_bucket_size"] == 7
    assert derived["zero_force_ds_cpu_optimizer"] is False
