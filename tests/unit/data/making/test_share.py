import itertools

import pytest

from dist_diffusion.data.making.share import Share, share_of
from dist_diffusion.distributed.environment import resolve
from dist_diffusion.errors import LaunchError


def _array(task: int, first: int, last: int, step: int = 1, **more: str) -> dict[str, str]:
    count = len(range(first, last + 1, step))
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(range(first, last + 1, step)[-1]),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_STEP": str(step),
        **more,
    }


def _mpi(rank: int, size: int) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in zip(names, (rank, size, rank, size), strict=True)}


def _share(environment: dict[str, str]) -> Share:
    return share_of(resolve(environment), environment)


def test_alone() -> None:
    assert _share({}) == Share(0, 1)


def test_ranks() -> None:
    assert _share(_mpi(2, 3)) == Share(2, 3)


@pytest.mark.parametrize(("first", "last", "step"), [(0, 7, 1), (1, 4, 1), (5, 5, 1), (0, 9, 3), (1, 8, 2)])
def test_an_arrays_tasks_share_all(first: int, last: int, step: int) -> None:
    tasks = range(first, last + 1, step)
    found = [_share(_array(task, first, last, step)) for task in tasks]
    assert found == [Share(i, len(tasks)) for i in range(len(tasks))]


def test_ranks_of_an_arrays_tasks_share_all() -> None:
    found = [_share(_array(task, 1, 3) | _mpi(rank, 2)) for task, rank in itertools.product((1, 2, 3), (0, 1))]
    assert found == [Share(i, 6) for i in range(6)]


def test_one_task_submitted_again_does_all_that_is_missing() -> None:
    assert _share(_array(5, 5, 5)) == Share(0, 1)


def test_an_irregular_array() -> None:
    environment = _array(3, 1, 9) | {"SLURM_ARRAY_TASK_COUNT": "3"}
    with pytest.raises(LaunchError, match=r"3 tasks from 1 to 9 are no regular range.*--array=0-2"):
        _share(environment)
    with pytest.raises(LaunchError, match="SLURM_ARRAY_TASK_COUNT"):
        _share({"SLURM_ARRAY_TASK_ID": "3"})
