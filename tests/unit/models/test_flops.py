"""Counted operations against a count by hand, and against published ones."""

import pytest
from support import ROOT

from dist_diffusion.config.load import load_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.models.flops import forward_flops, training_flops
from dist_diffusion.models.options import UNetOptions

PUBLISHED_GMAC = {
    # arXiv 2212.09748 calls these "Gflops"; its ADM-U, 742 at 256 pixels, is an upsampler's and its base's sum.
    "256x256_diffusion": 1120,
    "512x512_diffusion": 1983,
    "64x64_diffusion + 64_256_upsampler": 742,
    # The released classifiers, counted on the released code.
    "64x64_classifier": 19.1,
    "256x256_classifier": 73.3,
}


@pytest.mark.parametrize(("names", "gmac"), PUBLISHED_GMAC.items())
def test_the_released_networks_cost_what_is_published(names: str, gmac: float) -> None:
    counted = 0
    for name in names.split(" + "):
        recipe = load_train(str(ROOT / "configs/adm" / f"{name}.yaml"), ["run_dir=r", "data.shards=s"])
        counted += forward_flops(resolve(recipe, 1000).model)
    assert counted / 2e9 == pytest.approx(gmac, rel=3e-3)


def test_a_small_network_counted_by_hand() -> None:
    options = UNetOptions(
        channels=32,
        num_res_blocks=1,
        channel_mult=(1,),
        attention_resolutions=(8,),
        num_head_channels=32,
        image_size=8,
        num_classes=0,
        out_channels=6,
        null_label=False,
    )
    width, positions, emb = 32, 64, 128
    conv = 9 * positions

    def residual(channels: int) -> int:
        skip = positions * channels * width if channels != width else 0
        return conv * channels * width + conv * width * width + emb * 2 * width + skip

    projections = positions * width * 3 * width + positions * width * width
    attention = projections + 2 * positions * positions * width
    time = width * emb + emb * emb
    encoder = conv * 3 * width + residual(width) + attention
    middle = 2 * residual(width) + attention
    decoder = 2 * (residual(2 * width) + attention) + conv * width * 6
    assert forward_flops(options) == 2 * (time + encoder + middle + decoder)
    assert training_flops(options) == 3 * forward_flops(options)
