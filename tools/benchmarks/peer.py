"""guided-diffusion-sdk 1.0.0, unmodified: the released code as PyPI has it."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.setting import BATCH, IMAGE_SIZE, task_batch
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import UNetOptions

__all__ = ["diffusion", "image_datasets", "network", "training_step", "without_recomputation"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from guided_diffusion import image_datasets, logger, resample, script_util, train_util, unet
    except ImportError as error:
        raise ConfigError(
            f"guided-diffusion-sdk cannot be imported ({error}): "
            "python -m pip install --no-deps -r requirements-bench.txt"
        ) from error


def network(options: UNetOptions, state: dict[str, torch.Tensor]) -> nn.Module:
    """A measured network, built by the peer."""
    made = script_util.create_model(
        image_size=IMAGE_SIZE,
        num_channels=options.channels,
        num_res_blocks=options.num_res_blocks,
        channel_mult=",".join(str(int(multiplier)) for multiplier in options.channel_mult),
        learn_sigma=True,
        class_cond=True,
        attention_resolutions=",".join(map(str, options.attention_resolutions)),
        num_heads=options.num_heads,
        num_head_channels=options.num_head_channels or -1,
        use_scale_shift_norm=options.scale_shift_norm,
        resblock_updown=options.resblock_updown,
    )
    made.load_state_dict(state)
    return made


def diffusion() -> Any:
    """The peer's process: linear schedule, learned variance, hybrid loss."""
    return script_util.create_gaussian_diffusion(steps=1000, learn_sigma=True, noise_schedule="linear")


def training_step(options: UNetOptions, state: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A step of the peer's own TrainLoop, in fp32."""
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as folder:  # it must have one, and writes nothing to it
        logger.configure(dir=folder, format_strs=[])
    process = diffusion()
    loop = train_util.TrainLoop(
        model=network(options, state).train(),
        diffusion=process,
        data=None,
        batch_size=BATCH,
        microbatch=-1,
        lr=1e-4,
        ema_rate="0.9999",
        log_interval=10,
        save_interval=10_000,
        resume_checkpoint="",
        schedule_sampler=resample.UniformSampler(process),
    )
    batch = task_batch(0)

    def step() -> None:
        loop.run_step(batch.images.float() / 127.5 - 1, {"y": batch.labels})

    return step


@contextmanager
def without_recomputation() -> Iterator[None]:
    """The peer recomputes its attention in every backward pass, whatever its flags say; inside this it does not."""
    recomputing = unet.checkpoint
    unet.checkpoint = lambda function, inputs, parameters, flag: function(*inputs)
    try:
        yield
    finally:
        unet.checkpoint = recomputing
