import time

import pytest

from dist_diffusion.distributed.whereabouts import Phase, Seen, Spot, Whereabouts, blame

STILL_S = 15.0


def seen(
    stage: str | None,
    moves: int,
    host: str = "a",
    step: int | None = 17,
    silent_s: float = 1.0,
    phase: Phase = "step",
) -> Seen:
    # The time at which another host entered its phase, by a clock that is not comparable with this one's.
    return Seen(host, Spot(phase, step, stage, moves, since=1e9), silent_s)


DATA, BACKWARD, AGREE = seen("data", 1), seen("backward", 3), seen("agree", 5)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([DATA], "the process is at 'data' of step 17"),
        ([BACKWARD] * 8, "all 8 ranks wait at 'backward' of step 17"),
        ([DATA, BACKWARD], "rank 0 on a is at 'data' of step 17, the other waits at 'backward' of step 17"),
        (
            [BACKWARD] * 3 + [seen("data", 1, host="b")] + [BACKWARD] * 4,
            "rank 3 on b is at 'data' of step 17, the other 7 wait at 'backward' of step 17",
        ),
        # A step behind outweighs whatever stage.
        (
            [seen("data", 1, step=18), seen("agree", 9)],
            "rank 1 on a is at 'agree' of step 17, the other waits at 'data' of step 18",
        ),
        # The same words in an earlier micro-batch.
        (
            [seen("forward", 6), seen("forward", 2)],
            "rank 1 on a is at 'forward' of step 17, the other waits at 'forward' of step 17",
        ),
        (
            [DATA, DATA, BACKWARD, AGREE, seen("data", 1, host="b"), seen("data", 1, host="b")],
            "ranks 0-1 on a and ranks 4-5 on b are at 'data' of step 17, "
            "the other 2 wait at 'agree' of step 17 or 'backward' of step 17",
        ),
        (
            [BACKWARD, seen("forward", 2, host="b", silent_s=16)],
            "rank 1 on b, last at 'forward' of step 17, gives no sign of life, the other is at 'backward' of step 17",
        ),
        # Nothing can be said of who is behind where some are not heard.
        (
            [DATA, BACKWARD, seen("agree", 5, silent_s=600), None],
            "rank 2 on a, last at 'agree' of step 17, and rank 3, never heard of, give no sign of life, "
            "the other 2 are at 'backward' of step 17 or 'data' of step 17",
        ),
        (
            [BACKWARD, BACKWARD, *[seen("data", 1, host="b", silent_s=60)] * 2, BACKWARD],
            "ranks 2-3 on b, last at 'data' of step 17, give no sign of life, the other 3 are at 'backward' of step 17",
        ),
        (
            [seen(None, 7, phase="save"), BACKWARD],
            "rank 1 on a is at 'backward' of step 17, the other waits at 'save' of step 17",
        ),
        (
            [seen("restore", 2, step=None, phase="start"), seen(None, 0, phase="first_step", step=0)],
            "rank 0 on a is at 'restore' of start, the other waits at 'first_step' of step 0",
        ),
    ],
)
def test_who_keeps_the_others_waiting(ranks: list[Seen | None], said: str) -> None:
    assert blame(ranks, STILL_S) == said


def test_many_hosts_are_not_all_listed() -> None:
    lost = [seen("data", 1, host=f"n{i}", silent_s=60) for i in range(20)]
    said = blame([BACKWARD, *lost], STILL_S)
    assert "on n7" in said and "on n8" not in said
    assert "and 12 groups more give no sign of life, the other is at" in said


def test_ranks_that_do_the_same_are_equally_far_on() -> None:
    """Whatever each did before the step, and however long: only the order within the step counts."""
    one, other = Whereabouts(), Whereabouts()
    other.at("a visit that only one of them made")
    for where in (one, other):
        where.enter("step", 5)
        for stage in ("data", "forward", "backward"):
            where.at(stage)
    assert one.spot.progress == other.spot.progress
    before = one.spot.progress
    with one.during("save"):
        assert one.spot.progress > before
        inside = one.spot.progress
    assert one.spot.progress > inside
    after = one.spot.progress
    one.enter("step", 6)
    assert one.spot.progress > after


def test_a_limit_runs_from_the_entry_of_its_phase() -> None:
    where = Whereabouts()
    where.enter("step", 5)
    entered = where.spot.since
    time.sleep(0.002)
    where.at("agree")
    assert where.spot.since == entered
    with pytest.raises(ValueError, match="left"), where.during("preview"):
        assert (where.spot.phase, where.spot.step, where.spot.stage) == ("preview", 5, None)
        assert (inside := where.spot.since) > entered
        time.sleep(0.002)
        raise ValueError("left")
    assert (where.spot.phase, where.spot.step, where.spot.stage) == ("step", 5, "agree")
    assert where.spot.since > inside
