"""The launch environment as a topology: a pure function of the variables, in every rank alike.

The innermost launcher wins: torchrun or deepspeed, then MPI, then a SLURM step, else one process.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dist_diffusion.errors import LaunchError

Env = Mapping[str, str]

# Below Linux's ephemeral ports (32768 on), where a stranger's connection may sit.
_FIRST_PORT = 20000
_NUM_PORTS = 12000


@dataclass(frozen=True)
class Topology:
    """This process's place in the world. Address and port are None where the launcher does not tell them."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    launcher: str
    master_addr: str | None
    master_port: int | None


@dataclass(frozen=True)
class _Names:
    """Which variables a launcher sets."""

    rank: str
    world_size: str
    local_rank: str
    local_size: str


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI = {
    "openmpi": _Names(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    "mpich": _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


def resolve(env: Env) -> Topology:
    """The topology that the environment describes; LaunchError where it contradicts itself."""
    topology = _torchrun(env) or _mpi(env) or _slurm(env) or _single(env)
    _check_range("rank", topology.rank, topology.world_size, topology.launcher)
    _check_range("local rank", topology.local_rank, topology.local_size, topology.launcher)
    return topology


def share_of_cores(topology: Topology) -> int:
    """The host's cores that this process may use, over the ranks there; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // topology.local_size)


def check_ranks_used(topology: Topology, env: Env) -> None:
    """LaunchError where a SLURM step has several tasks and each of them resolved to a world of its own."""
    tasks = _optional_number(env, "SLURM_STEP_NUM_TASKS")
    if env.get("SLURM_STEP_ID") and tasks is not None and tasks > 1 and topology.world_size == 1:
        raise LaunchError(
            f"SLURM_STEP_NUM_TASKS is {tasks}, but the variables of {topology.launcher} give a world of 1: "
            f"{tasks} processes would all do the same work. Start one task, or unset those variables"
        )


def expand_hosts(nodelist: str) -> list[str]:
    """The hosts of a SLURM node list, in order: "n[01-03,7],m2" is n01 n02 n03 n7 m2."""
    # A comma separates hosts only outside brackets.
    return [host for part in re.findall(r"(?:\[[^]]*\]|[^,\[])+", nodelist) for host in _expand_brackets(part)]


def expand_counts(counts: str) -> list[int]:
    """SLURM's tasks of each node, in order: "2(x3),1" is 2 2 2 1."""
    expanded: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise LaunchError(f"{counts!r} is not a list of SLURM task counts such as 2(x3),1")
        expanded += [int(match[1])] * int(match[2] or 1)
    return expanded


def _torchrun(env: Env) -> Topology | None:
    if not all(env.get(name) for name in _TORCHRUN):
        return None
    world_size = _number(env, "WORLD_SIZE")
    # torchrun's name, deepspeed's name; set by hand, the five do not tell it: all ranks on this host at worst.
    local_size = _optional_number(env, "LOCAL_WORLD_SIZE") or _optional_number(env, "LOCAL_SIZE") or world_size
    return _topology(env, "torchrun", _number(env, "RANK"), world_size, _number(env, "LOCAL_RANK"), local_size)


def _mpi(env: Env) -> Topology | None:
    for launcher, names in _MPI.items():
        if not env.get(names.rank) or (launcher == "mpich" and _is_slurm_pmi(env)):
            continue
        return _topology(
            env,
            launcher,
            _number(env, names.rank),
            _number(env, names.world_size),
            _number(env, names.local_rank),
            _number(env, names.local_size),
        )
    return None


def _is_slurm_pmi(env: Env) -> bool:
    """Under `srun --mpi=pmi2` SLURM itself speaks PMI, without the local rank, for the world that its step is."""
    return bool(env.get("SLURM_STEP_ID")) and not env.get("MPI_LOCALRANKID")


def _slurm(env: Env) -> Topology | None:
    if not env.get("SLURM_STEP_ID"):
        return None
    rank = _number(env, "SLURM_PROCID")
    for name in ("PMIX_RANK", "PMI_RANK"):
        if _optional_number(env, name) not in (None, rank):
            raise LaunchError(f"{name} is {env[name]} but SLURM_PROCID is {rank}: start the ranks with one launcher")
    counts = expand_counts(_first(env, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = _number(env, "SLURM_NODEID")
    _check_range("SLURM_NODEID", node, len(counts), "slurm")
    address = expand_hosts(_first(env, "SLURM_STEP_NODELIST", "SLURM_NODELIST"))[0]
    port = _FIRST_PORT + (_number(env, "SLURM_JOB_ID") * 31 + _number(env, "SLURM_STEP_ID")) % _NUM_PORTS
    world_size, local_rank = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_LOCALID")
    return _topology(env, "slurm", rank, world_size, local_rank, counts[node], address, port)


def _single(env: Env) -> Topology:
    present = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMIX_RANK") if env.get(name)]
    if "PMIX_RANK" in present:
        raise LaunchError(f"PMIX_RANK is {env['PMIX_RANK']}, but neither Open MPI nor SLURM tells the world's size")
    if present:
        missing = ", ".join(name for name in _TORCHRUN if not env.get(name))
        raise LaunchError(f"{', '.join(present)} set without {missing}: set all five, as torchrun does, or none")
    return _topology(env, "single", 0, 1, 0, 1)


def _topology(
    env: Env,
    launcher: str,
    rank: int,
    world_size: int,
    local_rank: int,
    local_size: int,
    address: str | None = None,
    port: int | None = None,
) -> Topology:
    """Fills in the master; a MASTER_ADDR and MASTER_PORT of the user's win."""
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=local_size,
        launcher=launcher,
        master_addr=env.get("MASTER_ADDR") or address,
        master_port=_optional_number(env, "MASTER_PORT") or port,
    )


def _expand_brackets(part: str) -> list[str]:
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\](.*)", part)
    if match is None:
        return [part]
    tails = _expand_brackets(match[3])
    return [f"{match[1]}{number}{tail}" for item in match[2].split(",") for number in _range(item) for tail in tails]


def _range(item: str) -> list[str]:
    """ "08-10" is 08 09 10."""
    first, dash, last = item.partition("-")
    if not dash:
        return [first]
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _first(env: Env, *names: str) -> str:
    for name in names:
        if env.get(name):
            return env[name]
    raise LaunchError(f"inside a SLURM step, but {' and '.join(names)} are not set: start the ranks with srun")


def _optional_number(env: Env, name: str) -> int | None:
    value = env.get(name)
    if not value:
        return None
    if not re.fullmatch(r"\d+", value):
        raise LaunchError(f"{name} is {value!r}, not a whole number")
    return int(value)


def _number(env: Env, name: str) -> int:
    value = _optional_number(env, name)
    if value is None:
        raise LaunchError(
            f"the launcher's other variables are set but {name} is not; start all ranks with one launcher"
        )
    return value


def _check_range(what: str, value: int, size: int, launcher: str) -> None:
    if value >= size:
        raise LaunchError(
            f"{launcher}: {what} {value} does not fit a size of {size}; the variables contradict each other"
        )
