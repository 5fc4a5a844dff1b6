"""Networks: shapes, an output of zero at the start, label rows, and refusals."""

import pytest
import torch

from dist_diffusion.errors import ConfigError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions

SMALL = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (4,)}


def unet(**changes: object) -> torch.nn.Module:
    given = {"image_size": 8, "out_channels": 6, "num_classes": 5, "null_label": True, **SMALL, **changes}
    return build(UNetOptions(**given))  # type: ignore[arg-type]


def test_a_fresh_unet_predicts_zero_for_any_size() -> None:
    for size in (8, 12):
        out = unet(image_size=size)(torch.randn(2, 3, size, size), torch.tensor([0.0, 7.0]), torch.tensor([0, 5]))
        assert out.shape == (2, 6, size, size)
        assert not out.any()


def test_label_rows_follow_classes_and_null_label() -> None:
    assert unet().label_emb.weight.shape[0] == 6
    assert unet(null_label=False).label_emb.weight.shape[0] == 5
    assert not hasattr(unet(num_classes=0), "label_emb")


def test_autocast_and_bf16_weights_stay_near_fp32() -> None:
    torch.manual_seed(0)
    model = unet().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0]), torch.tensor([1, 5])
    with torch.no_grad():
        exact = model(x, time, labels)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(x, time, labels).float()
        low = model.to(torch.bfloat16)(x, time, labels).float()
    for approximate in (autocast, low):
        assert 0 < (approximate - exact).abs().max() < 0.05 * exact.abs().max()


def test_classifier_gives_logits_and_a_gradient() -> None:
    model = build(ClassifierOptions(image_size=8, num_classes=5, num_head_channels=32, **SMALL))  # type: ignore[arg-type]
    x = torch.randn(3, 3, 8, 8, requires_grad=True)
    logits = model(x, torch.zeros(3))
    assert logits.shape == (3, 5)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().sum() > 0


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=9 cannot be halved 1 times"):
        unet(image_size=9)
    with pytest.raises(ConfigError, match="cannot be split into heads"):
        unet(num_heads=7)
