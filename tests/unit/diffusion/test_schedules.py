"""Schedules and their respacing."""

import pytest
import torch

from dist_diffusion.diffusion.gaussians import make_process
from dist_diffusion.diffusion.levels import CLEAN
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import respace, sampling_levels
from dist_diffusion.errors import ConfigError


@pytest.mark.parametrize("num_timesteps", [50, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_respacing_to_all_timesteps_is_the_process_itself(schedule: str, num_timesteps: int) -> None:
    for spec in (str(num_timesteps), f"ddim{num_timesteps}"):
        assert respace(spec, num_timesteps) == list(range(num_timesteps))
    options = DiffusionOptions(schedule=schedule, num_timesteps=num_timesteps)  # type: ignore[arg-type]
    process = make_process(options)
    *levels, last = sampling_levels(options, str(num_timesteps))
    levels.reverse()
    assert last == CLEAN
    for ours, table in [
        ([level.alpha**2 for level in levels], process.alpha_bar),
        ([level.alpha**2 + level.sigma**2 for level in levels], torch.ones(num_timesteps)),
        ([level.log_beta for level in levels], process.beta.log()),
        ([level.log_posterior_variance for level in levels], process.posterior_log_variance),
        ([level.log_large_variance for level in levels], process.large_log_variance),
        ([level.model_time for level in levels], process.model_times),
    ]:
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), table.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("schedule", "at", "share"), [("linear", 1.0, 4e-5), ("cosine", 0.5, 0.49384)])
def test_any_number_of_timesteps_walks_the_same_way(schedule: str, at: float, share: float) -> None:
    """The signal's share of variance at one place: the linear schedule's end, the cosine's middle."""
    for num in (250, 1000, 4000):
        process = make_process(DiffusionOptions(schedule=schedule, num_timesteps=num))  # type: ignore[arg-type]
        assert process.alpha_bar[int(at * num) - 1].item() == pytest.approx(share, rel=0.25 if at == 1 else 1e-4)
        assert ((process.beta > 0) & (process.beta <= 0.999)).all()


def test_rescaled_timesteps_are_told_as_of_1000() -> None:
    options = DiffusionOptions(num_timesteps=250, rescale_timesteps=True)
    assert make_process(options).model_times.tolist() == [4 * t for t in range(250)]
    assert [level.model_time for level in sampling_levels(options, "2")[:-1]] == [996, 0]


def test_positions_are_summed_as_the_released_code_sums_them() -> None:
    """Halfway between two timesteps the sum's rounding decides: multiplying would keep 166 and 500 here."""
    kept = respace("157", 1000)
    assert {167, 499, 833} <= set(kept) and not {166, 500, 832} & set(kept)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("ddim37", "ddim36, ddim38"),
        ("ddim1", "ddim2"),
        ("1001", "has 1000 timesteps"),
        ("a", "expected a count"),
        ("0", "expected a count"),
    ],
)
def test_respacing_errors_say_what_would_work(spec: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        respace(spec, 1000)
    assert spec in str(caught.value)
    assert part in str(caught.value)
