"""The door to DeepSpeed: imported with the accelerator named and nothing to compile."""

import logging
import os
import warnings

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed import ops
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

# Otherwise the first two ranks on one CPU host compile a shared-memory collective, which needs a compiler and minutes.
ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.utils.logger.setLevel(logging.WARNING)
# DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

__all__ = ["ZERO_SUPPORTED_OPTIMIZERS", "deepspeed", "supports_fp16"]


def supports_fp16() -> bool:
    """Whether DeepSpeed trains in fp16 on this machine: on GPUs, and on some CPUs."""
    return bool(deepspeed.accelerator.get_accelerator().is_fp16_supported())
