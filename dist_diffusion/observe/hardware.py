"""What a rank's device can do, and the most memory that it had in use."""

import resource
import sys
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "autocast", "fp16"]

# Dense TFLOP/s with fp32 accumulation: fp32 without TF32, fp16, bf16 (None: no hardware for it). From NVIDIA's data
# sheets, which where they give the sparse figure give twice this one, and of the GeForce cards from the white papers of
# Ampere GA102, Ada and Blackwell. Whole devices: a slice (MIG) has a name of its own, and no figure here.
_PEAKS: dict[str, tuple[float, float, float | None]] = {
    "Tesla V100-SXM2-16GB": (15.7, 125.0, None),
    "Tesla V100-SXM2-32GB": (15.7, 125.0, None),
    "Tesla V100-PCIE-16GB": (14.0, 112.0, None),
    "Tesla V100-PCIE-32GB": (14.0, 112.0, None),
    "Tesla T4": (8.1, 65.0, None),
    "NVIDIA A100-SXM4-40GB": (19.5, 312.0, 312.0),
    "NVIDIA A100-SXM4-80GB": (19.5, 312.0, 312.0),
    "NVIDIA A100-PCIE-40GB": (19.5, 312.0, 312.0),
    "NVIDIA A100 80GB PCIe": (19.5, 312.0, 312.0),
    "NVIDIA A10": (31.2, 125.0, 125.0),
    "NVIDIA A30": (10.3, 165.0, 165.0),
    "NVIDIA A40": (37.4, 149.7, 149.7),
    "NVIDIA RTX A6000": (38.7, 154.8, 154.8),
    "NVIDIA L4": (30.3, 121.0, 121.0),
    "NVIDIA L40": (90.5, 181.05, 181.05),
    "NVIDIA L40S": (91.6, 362.05, 362.05),
    "NVIDIA H100 80GB HBM3": (67.0, 989.4, 989.4),
    "NVIDIA H100 PCIe": (51.0, 756.0, 756.0),
    "NVIDIA H100 NVL": (60.0, 835.5, 835.5),
    "NVIDIA H200": (67.0, 989.4, 989.4),
    "NVIDIA H200 NVL": (60.0, 835.5, 835.5),
    "NVIDIA GH200 480GB": (67.0, 989.4, 989.4),
    "NVIDIA B200": (75.0, 2250.0, 2250.0),
    "NVIDIA GeForce RTX 3090": (35.6, 71.0, 71.0),
    "NVIDIA GeForce RTX 4090": (82.6, 165.2, 165.2),
    "NVIDIA GeForce RTX 5090": (104.8, 209.5, 209.5),
}


def device_name(device: torch.device) -> str:
    """A GPU's name as its driver gives it; else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_tflops(name: str, precision: Precision) -> float | None:
    """Of a device by its name; None where it is not known."""
    if name not in _PEAKS:
        return None
    fp32, fp16, bf16 = _PEAKS[name]
    return {"fp32": fp32, "fp16": fp16, "bf16": bf16, "autocast": bf16}[precision]


def take_peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors held since the last call, else the most that this process ever held."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: on Linux that begins at what the process had that started this one.
    with open("/proc/self/status") as status:
        (kib,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kib) * 1024
