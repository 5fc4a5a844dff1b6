"""Networks with rule-made weights give the reference implementation's outputs, gradients and key names."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions

FOLDER = Path(__file__).parent
META = json.loads((FOLDER / "meta.json").read_text())
UNETS = [name for name, net in META["nets"].items() if net["kind"] == "unet"]


def rule_weight(name: str, shape: list[int]) -> torch.Tensor:
    seed = (zlib.crc32(name.encode()) + META["salt"]) % 2**31
    r = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name.endswith("weight") and len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def unet_options(o: dict) -> UNetOptions:
    return UNetOptions(
        channels=o["num_channels"],
        num_res_blocks=o["num_res_blocks"],
        channel_mult=integers(o["channel_mult"]),
        attention_resolutions=integers(o["attention_resolutions"]),
        num_heads=o["num_heads"],
        num_head_channels=None if o["num_head_channels"] == -1 else o["num_head_channels"],
        scale_shift_norm=o["use_scale_shift_norm"],
        resblock_updown=o["resblock_updown"],
        new_attention_order=o["use_new_attention_order"],
        image_size=o["image_size"],
        out_channels=6 if o["learn_sigma"] else 3,
        num_classes=1000 if o["class_cond"] else 0,
        null_label=False,
    )


def load_rule_weights(model: torch.nn.Module, keys: dict[str, list[int]]) -> None:
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == keys
    model.load_state_dict({k: rule_weight(k, shape) for k, shape in keys.items()})


@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str) -> None:
    net, z = META["nets"][name], np.load(FOLDER / f"{name}.npz")
    model = build(unet_options(net["options"])).eval()
    load_rule_weights(model, net["keys"])
    labels = torch.tensor(z["y"]).long() if z["y"].size else None
    with torch.no_grad():
        out = model(torch.tensor(z["x"]), torch.tensor(z["t"]), labels)
    torch.testing.assert_close(out, torch.tensor(z["out"]), atol=1e-4, rtol=0)


def test_classifier_and_its_gradient() -> None:
    net, z = META["nets"]["classifier_attention"], np.load(FOLDER / "classifier_attention.npz")
    o = net["options"]
    model = build(
        ClassifierOptions(
            channels=o["model_channels"],
            num_res_blocks=o["num_res_blocks"],
            channel_mult=tuple(o["channel_mult"]),
            attention_resolutions=tuple(o["attention_pixel_resolutions"]),
            num_head_channels=o["num_head_channels"],
            image_size=o["image_size"],
            num_classes=o["out_channels"],
        )
    ).eval()
    load_rule_weights(model, net["keys"])
    x, y = torch.tensor(z["x"]).requires_grad_(), torch.tensor(z["y"]).long()
    logits = model(x, torch.tensor(z["t"]))
    torch.testing.assert_close(logits, torch.tensor(z["logits"]), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(torch.log_softmax(logits, -1)[torch.arange(len(y)), y].sum(), x)
    largest = np.abs(z["grad"]).max()
    torch.testing.assert_close(gradient, torch.tensor(z["grad"]), atol=1e-4 * largest, rtol=0)
