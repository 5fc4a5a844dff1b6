"""guided-diffusion's options, however they are written, as ours."""

import pytest
from golden_checks.options import network_options
from golden_checks.report import MissingError

from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions

SMALL = {"num_channels": 32, "channel_mult": "1,2", "image_size": 32}


@pytest.mark.parametrize(
    "written",
    [
        {"attention_resolutions": "16,8"},
        {"attention_pixel_resolutions": [16, 8]},
        {"attention_resolutions_pixels": (16, 8), "use_fp16": False},
    ],
)
def test_one_network_written_in_many_ways(written: dict) -> None:
    expected = network_options("unet", {**SMALL, "attention_resolutions": "16,8"}, None)
    for multipliers in ("1,2", [1, 2]):
        assert network_options("unet", {**SMALL, "channel_mult": multipliers, **written}, None) == expected


def test_one_attention_resolution_may_be_a_number() -> None:
    written = [network_options("unet", {**SMALL, "attention_resolutions": value}, None) for value in (16, "16", [16])]
    assert written[0] == written[1] == written[2] and written[0].attention_resolutions == (16,)


def test_the_script_s_classifier_has_the_script_s_defaults() -> None:
    """guided-diffusion's create_classifier gives every head 64 channels."""
    by_script = network_options("classifier", {"classifier_use_fp16": False}, None)
    assert by_script == ClassifierOptions(image_size=64, num_classes=1000)
    flags = {"classifier_width": 64, "classifier_depth": 1, "classifier_attention_resolutions": "16"}
    named = {"classifier_pool": "spatial", "classifier_resblock_updown": False}
    made = network_options("classifier", {"image_size": 64, **flags, **named}, None)
    assert isinstance(made, ClassifierOptions)
    assert (made.channels, made.num_res_blocks, made.attention_resolutions) == (64, 1, (16,))
    assert (made.num_head_channels, made.pool, made.resblock_updown) == (64, "spatial", False)
    by_class = network_options("classifier", {"image_size": 64}, None)
    assert isinstance(by_class, ClassifierOptions)
    assert (by_class.num_head_channels, by_class.pool, by_class.resblock_updown) == (None, "adaptive", False)


def test_channels_follow_the_image_size_where_none_are_given() -> None:
    def multipliers(kind: str, size: int) -> tuple[float, ...]:
        return network_options(kind, {"image_size": size, "channel_mult": ""}, None).channel_mult

    assert multipliers("unet", 512) == (0.5, 1, 1, 2, 2, 4, 4)
    assert multipliers("superres", 512) == (1, 1, 2, 2, 4, 4)
    assert multipliers("classifier", 64) == (1, 2, 3, 4)
    with pytest.raises(MissingError, match="image_size=48"):
        multipliers("unet", 48)


def test_classes_are_named_or_the_label_rows_or_1000() -> None:
    def classes(options: dict, rows: int | None = None, kind: str = "unet") -> int | None:
        return network_options(kind, {**SMALL, **options}, rows).num_classes

    assert classes({}) == 0
    assert classes({"class_cond": True}) == 1000
    assert classes({"class_cond": True}, rows=7) == 7
    assert classes({"class_cond": True, "num_classes": 5}, rows=7) == 5
    assert classes({"class_cond": True, "num_classes": None}, rows=7) == 7
    assert classes({"class_cond": True, "num_classes": None}) == 1000
    assert classes({"class_cond": False, "num_classes": 1000}) == 0
    assert classes({"num_classes": 5}) == 5
    assert classes({}, kind="superres") == 1000
    assert classes({"class_cond": False}, rows=7, kind="superres") == 0
    assert classes({"num_classes": None}, kind="superres") == 0
    assert classes({"out_channels": 12}, kind="classifier") == 12


def test_minus_one_is_not_given_and_what_is_unnamed_is_the_references() -> None:
    heads = {"num_heads_upsample": -1, "num_head_channels": -1}
    unet = network_options("unet", {**SMALL, **heads, "learn_sigma": True}, None)
    assert isinstance(unet, UNetOptions) and not isinstance(unet, SuperResolutionOptions)
    assert (unet.num_heads_upsample, unet.num_head_channels, unet.out_channels) == (None, None, 6)
    assert unet.scale_shift_norm and not unet.resblock_updown and not unet.new_attention_order
    larger = network_options("superres", SMALL, None)
    assert isinstance(larger, SuperResolutionOptions) and larger.scale_shift_norm and larger.resblock_updown
    classifier = network_options("classifier", {**SMALL, **heads, "pool": "spatial_v2"}, None)
    assert isinstance(classifier, ClassifierOptions) and classifier.pool == "spatial_v2"
    assert classifier.num_head_channels is None and classifier.num_heads == 1 and classifier.scale_shift_norm


@pytest.mark.parametrize("option", [{"conv_resample": False}, {"dims": 1}, {"sparkle": 1}])
def test_options_that_would_be_ignored_are_refused(option: dict) -> None:
    with pytest.raises(MissingError, match=next(iter(option))):
        network_options("unet", {**SMALL, **option}, None)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(MissingError, match="kind video"):
        network_options("video", SMALL, None)
