"""The names of averages, and which of two recipes' averages are the same."""

from dist_diffusion.config.averages import average_names, exported_averages, same_average
from dist_diffusion.config.schema import CheckpointOptions, DiffusionRecipe, EmaOptions

OPTIONS = EmaOptions(decays=(0.999, 0.9999), stds=(0.05, 0.1))


def test_decays_come_first_then_profiles() -> None:
    assert average_names(OPTIONS) == ("ema_0", "ema_1", "std_0.05", "std_0.1")


def test_what_a_commit_exports() -> None:
    assert exported_averages(DiffusionRecipe(ema=OPTIONS)) == ("ema_0",)
    assert exported_averages(DiffusionRecipe(ema=EmaOptions(stds=(0.1,)))) == ("std_0.1",)
    assert exported_averages(DiffusionRecipe(ema=EmaOptions())) == ("weights",)
    chosen = CheckpointOptions(export=("weights", "ema_1"))
    assert exported_averages(DiffusionRecipe(ema=OPTIONS, checkpoint=chosen)) == ("weights", "ema_1")


def test_an_average_is_known_by_what_it_is_not_by_its_number() -> None:
    now = EmaOptions(decays=(0.9999, 0.5), stds=(0.1,))
    assert [same_average(name, now, OPTIONS) for name in average_names(now)] == ["ema_1", None, "std_0.1"]
