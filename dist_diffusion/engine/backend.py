"""The door to DeepSpeed: imported with the accelerator named and nothing to compile."""

import logging
import os

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed import ops

# Otherwise the first two ranks on one CPU host compile a shared-memory collective, which needs a compiler and minutes.
ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.utils.logger.setLevel(logging.WARNING)

__all__ = ["deepspeed"]
