"""Which commits stay."""

from dist_diffusion.config.schema import CheckpointOptions
from dist_diffusion.runs.keeping import best, kept

STEPS = range(10, 101, 10)


def test_the_newest_the_multiples_and_the_best_stay() -> None:
    scores = {20: 0.5, 60: 0.1, 70: 0.1, 90: 0.3}
    assert kept(STEPS, CheckpointOptions(keep=2), scores) == {70, 90, 100}
    assert kept(STEPS, CheckpointOptions(keep=2, best_is="highest"), scores) == {20, 90, 100}
    assert kept(STEPS, CheckpointOptions(keep=1, keep_every=40), {}) == {40, 80, 100}
    assert kept(STEPS, CheckpointOptions(keep=0, keep_every=40), scores) == set(STEPS)
    assert kept([10], CheckpointOptions(keep=3), {}) == {10}


def test_a_score_of_a_commit_that_is_gone_counts_for_nothing() -> None:
    assert best([30, 40], {10: 0.0, 40: 2.0}, "lowest") == 40
    assert best([30], {10: 0.0}, "lowest") is None


def test_what_was_kept_as_best_goes_once_a_better_one_is_there() -> None:
    options = CheckpointOptions(keep=1)
    present, scores = [], {}
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 0.5), (5, 0.7)]:
        present = sorted(kept([*present, step], options, scores))
        scores[step] = loss
    assert present == [4, 5]
