"""The process group of a command: rendezvous, device, threads."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist

from dist_diffusion.distributed import mpi
from dist_diffusion.distributed.environment import Topology, share_of_cores
from dist_diffusion.errors import LaunchError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Group:
    """This process among its peers. `control` is a gloo group for small CPU messages, `device` is where tensors go."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup


def start(topology: Topology, timeout_s: float) -> Group:
    """Joins the process group (one of size 1 where there is no launcher)."""
    device = choose_device(topology.local_rank)
    # fp32 means fp32: the fast formats are chosen by engine.precision alone.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    export_environment(topology)
    dist.init_process_group(
        backend, rank=topology.rank, world_size=topology.world_size, timeout=timedelta(seconds=timeout_s)
    )
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return Group(topology.rank, topology.world_size, device, control)


def choose_device(local_rank: int) -> torch.device:
    """The rank's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", device_index(local_rank))
    torch.cuda.set_device(device)
    return device


def device_index(local_rank: int) -> int:
    """Which of the visible GPUs a rank uses; without GPUs, its local rank."""
    return local_rank % torch.cuda.device_count() if torch.cuda.is_available() else local_rank


def set_deterministic(deterministic: bool) -> None:
    """Chooses kernels on GPUs whose results do not vary from run to run; slower."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic


def set_threads(threads: int | None, topology: Topology) -> int:
    """Sets and returns this rank's CPU threads: the recipe's, else OMP_NUM_THREADS, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None:
        threads = int(given) if given.isdecimal() else share_of_cores(topology)
    torch.set_num_threads(threads)
    return threads


def export_environment(topology: Topology) -> None:
    """Agrees on the rendezvous and sets the five variables that torch and DeepSpeed read."""
    address, port = rendezvous(topology)
    # DeepSpeed insists that it equals LOCAL_RANK, which may be torchrun's inside of mpirun's.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    os.environ.update(
        RANK=str(topology.rank),
        WORLD_SIZE=str(topology.world_size),
        LOCAL_RANK=str(device_index(topology.local_rank)),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if address == LOOPBACK:
        # Without it gloo looks the host's name up, which fails or warns on machines without a network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def rendezvous(topology: Topology) -> tuple[str, int]:
    """Address and port on which rank 0 listens."""
    if topology.master_addr is not None and topology.master_port is not None:
        return topology.master_addr, topology.master_port
    if topology.world_size == 1:
        return LOOPBACK, free_port()
    if topology.launcher == "slurm":
        raise LaunchError("SLURM's variables name no first host: set MASTER_ADDR and MASTER_PORT")
    return mpi.agree(topology, lambda: own_address(topology), free_port)


def own_address(topology: Topology) -> str:
    """An address at which the other ranks reach this host."""
    if topology.master_addr is not None:
        return topology.master_addr
    if topology.local_size == topology.world_size:
        return LOOPBACK
    address = socket.gethostbyname(socket.gethostname())
    if address.startswith("127."):
        raise LaunchError(f"the name of this host, {socket.gethostname()}, resolves to {address}: set MASTER_ADDR")
    return address


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def stop() -> None:
    """Leaves the process group."""
    dist.destroy_process_group()


def set_timeouts(timeout_s: float) -> None:
    """Gives every process group the limit: those that DeepSpeed makes do not inherit the one given at the start."""
    for process_group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), process_group)


def is_peer_loss(error: BaseException) -> bool:
    """Whether an error out of a collective says that another rank is gone or hangs."""
    words = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "Timed out waiting")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )
