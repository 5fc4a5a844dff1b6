"""The only user of mpi4py: under MPI the ranks agree here on where rank 0 listens, and need MPI no more."""

from collections.abc import Callable

from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import LaunchError


def agree(topology: Topology, address: Callable[[], str], port: Callable[[], int]) -> tuple[str, int]:
    """Rank 0's address and port, in every rank."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI

        # mpi4py loads the MPI library when MPI is imported: a RuntimeError says that there is none.
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"started by {topology.launcher}, but mpi4py finds no MPI library ({error}): install the MPI that "
            "mpirun belongs to, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    MPI.Init()
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (topology.rank, topology.world_size):
        raise LaunchError(
            f"{topology.launcher} says rank {topology.rank} of {topology.world_size}, but the MPI that mpi4py loads, "
            f"{MPI.Get_library_version().split(',')[0]}, says rank {world.rank} of {world.size}: "
            "start with the mpirun of that MPI"
        )
    where = world.bcast((address(), port()) if topology.rank == 0 else None)
    # Finalized at once: from here on a lost rank is the launcher's and torch's matter, and no exit waits for MPI.
    MPI.Finalize()
    return where
