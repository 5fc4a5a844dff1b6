"""Networks of openai/guided-diffusion described by its options, as ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions
from dist_diffusion.weights.flags import THEIR_CHANNEL_MULT, THEIR_CLASSES, THEIR_UPSAMPLER_MULT
from golden_checks.report import MissingError

SAME_NUMBERS = ("use_checkpoint", "use_fp16", "small_size")
"""Options that change no value of an fp32 network."""
FIXED = {"dims": 2, "conv_resample": True, "in_channels": 3}
"""Options of which one value alone is known here."""
SCRIPT_PREFIX = "classifier_"
"""Of the names that the released script gives to its classifier's options."""


class Given:
    """A network's options: each is taken by its names, and none may be left over."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._left = dict(options)
        for name in SAME_NUMBERS:
            self._left.pop(name, None)
        for name, value in FIXED.items():
            if self._left.pop(name, value) != value:
                raise MissingError(f"option {name}={options[name]} is not known, {value} is")

    def any_begins(self, prefix: str) -> bool:
        """Whether a name that is not taken yet begins so."""
        return any(name.startswith(prefix) for name in self._left)

    def take(self, default: Any, *names: str) -> Any:
        """The value under the first of the names that is given."""
        values = [self._left.pop(name) for name in names if name in self._left]
        return values[0] if values else default

    def check_all_taken(self) -> None:
        """MissingError for an option that was not asked for."""
        if self._left:
            raise MissingError(f"options {', '.join(sorted(self._left))} are not known")


def numbers(value: str | float | Sequence[float]) -> tuple[float, ...]:
    """Of "1,2,3", [1, 2, 3] or a single 1."""
    if isinstance(value, int | float):
        return (float(value),)
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(float(part) for part in parts if part != "")


def sizes(value: str | float | Sequence[float]) -> tuple[int, ...]:
    """Image sizes, in pixels."""
    return tuple(int(number) for number in numbers(value))


def positive(value: int | None) -> int | None:
    """An option whose -1 says that it is not given."""
    return None if value in (None, -1) else value


def network_options(kind: str, options: Mapping[str, Any], label_rows: int | None) -> UNetOptions | ClassifierOptions:
    """Our options of a network. `label_rows` of its state_dict stand in for a number of classes that is not named."""
    given = Given(options)
    if kind == "classifier":
        made: UNetOptions | ClassifierOptions = classifier(given)
    elif kind in ("unet", "superres"):
        made = unet(given, kind == "superres", label_rows)
    else:
        raise MissingError(f"kind {kind} is not known")
    given.check_all_taken()
    return made


def unet(given: Given, upsampler: bool, label_rows: int | None) -> UNetOptions:
    """The UNet, or the super-resolution UNet: what is not named is as the released script has it."""
    size = given.take(64, "large_size", "image_size")
    automatic = THEIR_UPSAMPLER_MULT if upsampler else THEIR_CHANNEL_MULT
    outputs = 6 if given.take(False, "learn_sigma") else 3
    kind = SuperResolutionOptions if upsampler else UNetOptions
    return kind(
        channels=given.take(128, "num_channels", "model_channels"),
        num_res_blocks=given.take(2, "num_res_blocks"),
        channel_mult=channel_mult(given, automatic, size),
        attention_resolutions=attention(given, "16,8"),
        num_heads=given.take(4, "num_heads"),
        num_heads_upsample=positive(given.take(None, "num_heads_upsample")),
        num_head_channels=positive(given.take(None, "num_head_channels")),
        scale_shift_norm=given.take(True, "use_scale_shift_norm"),
        resblock_updown=given.take(upsampler, "resblock_updown"),
        new_attention_order=given.take(False, "use_new_attention_order"),
        dropout=given.take(0.0, "dropout"),
        image_size=size,
        out_channels=given.take(outputs, "out_channels"),
        num_classes=label_classes(given, upsampler, label_rows or THEIR_CLASSES),
        null_label=False,
    )


def label_classes(given: Given, upsampler: bool, unnamed: int) -> int:
    """Classes of a UNet, 0 where it is unconditional: class_cond decides where it is given, else num_classes does."""
    conditional = given.take(None, "class_cond")
    named = given.take(unnamed if conditional or upsampler else 0, "num_classes") or 0
    if conditional is None:
        return named
    return (named or unnamed) if conditional else 0


def classifier(given: Given) -> ClassifierOptions:
    """The classifier: what is not named is as the reference's class has it, with scale-shift norm.

    Where an option has the released script's name, it is as the script has it.
    """
    script = given.any_begins(SCRIPT_PREFIX)
    given.take(None, "classifier_use_fp16")
    size = given.take(64, "image_size")
    given.take(None, "num_heads_upsample")  # it has no decoder
    return ClassifierOptions(
        channels=given.take(128, "model_channels", "num_channels", "classifier_width"),
        num_res_blocks=given.take(2, "num_res_blocks", "classifier_depth"),
        channel_mult=channel_mult(given, THEIR_CHANNEL_MULT, size),
        attention_resolutions=attention(given, "32,16,8"),
        num_heads=given.take(1, "num_heads"),
        num_head_channels=positive(given.take(64 if script else None, "num_head_channels")),
        pool=given.take("attention" if script else "adaptive", "pool", "classifier_pool"),
        scale_shift_norm=given.take(True, "use_scale_shift_norm", "classifier_use_scale_shift_norm"),
        resblock_updown=given.take(script, "resblock_updown", "classifier_resblock_updown"),
        new_attention_order=given.take(False, "use_new_attention_order"),
        dropout=given.take(0.0, "dropout"),
        image_size=size,
        num_classes=given.take(THEIR_CLASSES, "out_channels", "num_classes"),
    )


def channel_mult(given: Given, automatic: Mapping[int | None, tuple[float, ...]], image_size: int) -> tuple[float, ...]:
    """The multipliers named, else the image size's."""
    named = numbers(given.take("", "channel_mult") or "")
    if not named and image_size not in automatic:
        raise MissingError(f"no channel_mult is given, and image_size={image_size} has none of its own")
    return named or automatic[image_size]


def attention(given: Given, default: str) -> tuple[int, ...]:
    """Image sizes with attention, in pixels, under any of their names."""
    names = ("attention_resolutions", "attention_pixel_resolutions", "attention_resolutions_pixels")
    return sizes(given.take(default, *names, "classifier_attention_resolutions"))
