"""Peaks of known devices, and memory."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.observe.hardware import Precision, device_name, peak_tflops, take_peak_memory


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "autocast", 312.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        # No hardware for it, a slice of a device, a slower one of the same chip, and none at all.
        ("Tesla V100-SXM2-32GB", "autocast", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks(name: str, precision: Precision, peak: float | None) -> None:
    assert peak_tflops(name, precision) == peak


def test_the_name_of_a_cpu_is_no_device_with_a_peak() -> None:
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_cpus_memory_holds_what_was_freed() -> None:
    cpu, more = torch.device("cpu"), 1 << 26
    before = take_peak_memory(cpu)
    in_use = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert before >= in_use
    ballast = np.ones(before - in_use + more, np.uint8)
    del ballast
    assert before + more // 2 < take_peak_memory(cpu) < before + 2 * more
