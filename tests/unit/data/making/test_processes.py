import os
from collections.abc import Iterator

import pytest

from dist_diffusion.data.making import processes
from dist_diffusion.errors import DataError, PeerLostError


def _square(number: int) -> int:
    return number * number


def _fail_at_three(number: int) -> int:
    if number == 3:
        raise DataError("three")
    return number


def _die_at_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def test_all_results_with_and_without_processes() -> None:
    assert list(processes.each(_square, range(20), 1)) == [i * i for i in range(20)]
    assert sorted(processes.each(_square, range(20), 2)) == [i * i for i in range(20)]
    assert list(processes.each(_square, [], 2)) == []


def test_jobs_are_asked_for_as_they_are_needed() -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    results = processes.each(_square, jobs(), 2)
    next(results)
    assert len(asked) <= 2 * 2 + 2
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_the_jobs_own(workers: int) -> None:
    with pytest.raises(DataError, match="three"):
        list(processes.each(_fail_at_three, range(10), workers))


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(PeerLostError, match=r"a worker process ended without a word.*fewer --workers"):
        list(processes.each(_die_at_three, range(10), 2))
