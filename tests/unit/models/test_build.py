"""Networks: shapes, an output of zero at the start, label rows, and refusals."""

import pytest
import torch
from torch.nn import functional as F

from dist_diffusion.errors import ConfigError
from dist_diffusion.models import layers
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions

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
    with pytest.raises(ConfigError, match=r"7 attention heads .* do not divide 64 channels"):
        unet(num_heads=7)
    with pytest.raises(ConfigError, match=r"model\.num_head_channels=48 does not divide 64 channels"):
        unet(num_head_channels=48)
    with pytest.raises(ConfigError, match=r"model\.channel_mult has 0\.3"):
        unet(channel_mult=(0.3, 1))


def test_half_a_width_and_other_heads_in_the_decoder() -> None:
    model = unet(channels=64, channel_mult=(0.5, 1), num_heads=2, num_heads_upsample=8)
    assert model.input_blocks[0][0].out_channels == 32
    assert model(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 1])).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_every_pool_gives_logits(pool: str) -> None:
    options = ClassifierOptions(image_size=8, num_classes=5, num_head_channels=32, pool=pool, **SMALL)  # type: ignore[arg-type]
    model = perturbed(build(options))
    logits = model(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 5.0, 900.0]))
    assert logits.shape == (3, 5) and logits.std(dim=0).min() > 0


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """With the branches that begin at zero open."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["unet", "super_resolution", "classifier"])
def test_recomputation_changes_no_gradient(kind: str, dropout: float) -> None:
    """Dropout's mask is drawn again as it was."""
    inputs = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 700.0])]
    if kind == "classifier":
        options: UNetOptions | ClassifierOptions = ClassifierOptions(
            image_size=8, num_classes=5, num_head_channels=32, dropout=dropout, **SMALL
        )  # type: ignore[arg-type]
    else:
        shape = {"image_size": 8, "out_channels": 6, "num_classes": 5, "null_label": False, "dropout": dropout, **SMALL}
        options = UNetOptions(**shape) if kind == "unet" else SuperResolutionOptions(low_res_size=4, **shape)
        inputs.append(torch.tensor([1, 4]))
    if kind == "super_resolution":
        inputs.append(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)))
    weights = perturbed(build(options)).state_dict()
    gradients = []
    for recompute in (False, True):
        model = build(options, recompute).train()
        model.load_state_dict(weights)
        torch.manual_seed(7)
        model(*inputs).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.equal(gradient, gradients[1][name]), name


def test_recomputation_keeps_less() -> None:
    """Of what the backward pass needs only the blocks' inputs stay."""
    held = {}
    for recompute in (False, True):
        model = build(UNetOptions(image_size=8, out_channels=3, num_classes=0, **SMALL), recompute)  # type: ignore[arg-type]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model(torch.randn(2, 3, 8, 8), torch.zeros(2), None)
        held[recompute] = sum(sizes)
    assert held[True] < 0.5 * held[False]


def test_short_bf16_sequences_on_cpus_get_the_same_attention() -> None:
    """Plain products stand in for the fused kernel there: the values and the gradients are its own."""
    generator = torch.Generator().manual_seed(3)
    for length in (layers.SHORT, layers.SHORT + 1):
        q, k, v = (torch.randn(2, 3, length, 16, generator=generator).requires_grad_() for _ in range(3))
        low = [tensor.detach().bfloat16().requires_grad_() for tensor in (q, k, v)]
        exact, made = F.scaled_dot_product_attention(q, k, v), layers.dot_product_attention(*low)
        assert made.dtype == torch.bfloat16
        torch.testing.assert_close(made.float(), exact, atol=0.02, rtol=0)
        exact_gradients = torch.autograd.grad(exact.square().sum(), (q, k, v))
        gradients = torch.autograd.grad(made.float().square().sum(), low)
        for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
            torch.testing.assert_close(gradient.float(), exact_gradient, atol=0.05, rtol=0)


@pytest.mark.parametrize("resblock_updown", [True, False])
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifier_takes_any_image_size(pool: str, resblock_updown: bool) -> None:
    options = ClassifierOptions(
        channels=32,
        num_res_blocks=1,
        channel_mult=(1, 1, 1),
        num_head_channels=32,
        pool=pool,  # type: ignore[arg-type]
        resblock_updown=resblock_updown,
        image_size=11,
        num_classes=7,
    )
    assert build(options)(torch.randn(2, 3, 11, 11), torch.tensor([0.0, 5.0])).shape == (2, 7)
