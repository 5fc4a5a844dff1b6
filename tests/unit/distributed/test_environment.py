"""The environments are recordings: torchrun 2.13, deepspeed 0.19, Open MPI 4.1, MPICH 5, SLURM 22.05."""

import pytest

from dist_diffusion.distributed.environment import Topology, check_ranks_used, expand_counts, expand_hosts, resolve
from dist_diffusion.errors import LaunchError

TORCHRUN = {
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "44425",
    "RANK": "1",
    "WORLD_SIZE": "2",
}
DEEPSPEED = {
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29512",
    "RANK": "1",
    "WORLD_SIZE": "2",
}
OPENMPI = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "OMPI_COMM_WORLD_NODE_RANK": "2",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_UNIVERSE_SIZE": "2",
    "PMIX_NAMESPACE": "1832386561",
    "PMIX_RANK": "2",
}
MPICH = {
    "MPI_LOCALNRANKS": "3",
    "MPI_LOCALRANKID": "2",
    "PMI_FD": "16",
    "PMI_HOSTNAME": "vm",
    "PMI_RANK": "2",
    "PMI_SIZE": "3",
}
BATCH = {
    "SLURM_JOB_ID": "4",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SALLOC = {name: BATCH[name] for name in BATCH if name not in ("SLURM_LOCALID", "SLURM_NODEID", "SLURM_PROCID")}
OPENMPI_IN_BATCH = BATCH | OPENMPI
# On the other nodes mpirun's daemon is itself a SLURM step.
OPENMPI_IN_BATCH_SECOND_NODE = {
    **BATCH,
    **{name: "1" for name in ("SLURM_NNODES", "SLURM_NPROCS", "SLURM_NTASKS", "SLURM_TASKS_PER_NODE")},
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "n2",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "PMIX_RANK": "2",
}
SRUN = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "3",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "n[1-3]",
    "SLURM_NPROCS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
}
SRUN_LAST = SRUN | {"SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_PROCID": "4"}
SRUN_PMIX = {
    **SRUN,
    "PMIX_RANK": "2",
    "SLURM_JOB_ID": "2",
    "SLURM_JOB_NODELIST": "n[2-3]",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "n[2-3]",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
SRUN_PMI2 = {**SRUN_PMIX, "PMI_FD": "11", "PMI_JOBID": "3.0", "PMI_RANK": "2", "PMI_SIZE": "3", "SLURM_JOB_ID": "3"}
del SRUN_PMI2["PMIX_RANK"]
# A step on one node of a larger job: all of the step's variables count, none of the job's.
SRUN_PART = {
    **BATCH,
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "n2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
SINGLE = Topology(0, 1, 0, 1, "single", None, None)


@pytest.mark.parametrize(
    ("env", "topology"),
    [
        ({}, SINGLE),
        ({"PATH": "/bin", "OMP_NUM_THREADS": "1"}, SINGLE),
        (BATCH, SINGLE),
        (SALLOC, SINGLE),
        (TORCHRUN, Topology(1, 2, 1, 2, "torchrun", "localhost", 44425)),
        (DEEPSPEED, Topology(1, 2, 1, 2, "torchrun", "127.0.0.1", 29512)),
        (OPENMPI, Topology(2, 3, 2, 3, "openmpi", None, None)),
        (MPICH, Topology(2, 3, 2, 3, "mpich", None, None)),
        (OPENMPI_IN_BATCH, Topology(2, 3, 2, 3, "openmpi", None, None)),
        (OPENMPI_IN_BATCH_SECOND_NODE, Topology(2, 3, 0, 1, "openmpi", None, None)),
        (SRUN, Topology(3, 5, 1, 2, "slurm", "n1", 20031)),
        (SRUN_LAST, Topology(4, 5, 0, 1, "slurm", "n1", 20031)),
        (SRUN_PMIX, Topology(2, 3, 0, 1, "slurm", "n2", 20062)),
        (SRUN_PMI2, Topology(2, 3, 0, 1, "slurm", "n2", 20093)),
        (SRUN_PART, Topology(1, 2, 1, 2, "slurm", "n2", 20125)),
        # The innermost launcher wins.
        (SRUN | TORCHRUN, Topology(1, 2, 1, 2, "torchrun", "localhost", 44425)),
        (OPENMPI | TORCHRUN, Topology(1, 2, 1, 2, "torchrun", "localhost", 44425)),
        (SRUN | OPENMPI, Topology(2, 3, 2, 3, "openmpi", None, None)),
        (SRUN | MPICH, Topology(2, 3, 2, 3, "mpich", None, None)),
    ],
)
def test_resolve(env, topology):
    assert resolve(env) == topology


@pytest.mark.parametrize("env", [OPENMPI, MPICH, SRUN, {}])
def test_a_master_of_the_users_wins(env):
    topology = resolve({**env, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert (topology.master_addr, topology.master_port) == ("10.0.0.1", 1234)
    assert topology.world_size == resolve(env).world_size
    only_port = resolve({**env, "MASTER_ADDR": "", "MASTER_PORT": "1234"})
    assert (only_port.master_addr, only_port.master_port) == (resolve(env).master_addr, 1234)


def test_five_variables_set_by_hand_are_enough():
    env = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert resolve(env) == Topology(1, 2, 1, 2, "torchrun", "localhost", 44425)


def test_all_ranks_of_a_step_agree_on_a_port_and_steps_do_not_share_one():
    ports = {
        (job, step): resolve({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).master_port
        for job in range(1_000_000, 1_000_100)
        for step in range(5)
    }
    assert len(set(ports.values())) == len(ports)
    # Below the ports that Linux gives to outgoing connections.
    assert all(20000 <= port < 32768 for port in ports.values())
    assert resolve(SRUN).master_port == resolve(SRUN_LAST).master_port


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"])
def test_a_missing_companion_of_open_mpi_is_named(name):
    with pytest.raises(LaunchError, match=f"{name} is not"):
        resolve({key: value for key, value in OPENMPI.items() if key != name})


@pytest.mark.parametrize("name", ["PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"])
def test_a_missing_companion_of_mpich_is_named(name):
    with pytest.raises(LaunchError, match=f"{name} is not"):
        resolve({key: value for key, value in MPICH.items() if key != name})


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID"])
def test_a_missing_companion_of_slurm_is_named(name):
    with pytest.raises(LaunchError, match=f"{name} is not"):
        resolve({key: value for key, value in SRUN.items() if key != name})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK, WORLD_SIZE .*LOCAL_RANK: set",
        ),
        ({"RANK": "0"}, "RANK set without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK is 1, but neither Open MPI nor SLURM"),
        ({**TORCHRUN, "RANK": "2"}, "rank 2 does not fit a size of 2"),
        ({**OPENMPI, "OMPI_COMM_WORLD_RANK": "3"}, "openmpi: rank 3 does not fit a size of 3"),
        ({**MPICH, "MPI_LOCALRANKID": "3"}, "mpich: local rank 3 does not fit a size of 3"),
        ({**SRUN, "SLURM_PROCID": "5"}, "slurm: rank 5 does not fit a size of 5"),
        ({**SRUN, "SLURM_NODEID": "3"}, "SLURM_NODEID 3 does not fit a size of 3"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x"}, "'2\\(x' is not a list of SLURM task counts"),
        ({**SRUN, "SLURM_STEP_NODELIST": "", "SLURM_NODELIST": ""}, "SLURM_STEP_NODELIST and SLURM_NODELIST are not"),
        ({**SRUN_PMIX, "PMIX_RANK": "0"}, "PMIX_RANK is 0 but SLURM_PROCID is 2"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT is 'http', not a whole number"),
        ({**OPENMPI, "OMPI_COMM_WORLD_RANK": "-1"}, "OMPI_COMM_WORLD_RANK is '-1'"),
    ],
)
def test_contradictions(env, message):
    with pytest.raises(LaunchError, match=message):
        resolve(env)


def test_many_worlds_of_one_inside_a_step_are_refused():
    alone = {**OPENMPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    env = SRUN | alone
    with pytest.raises(LaunchError, match="SLURM_STEP_NUM_TASKS is 5, but the variables of openmpi give a world of 1"):
        check_ranks_used(resolve(env), env)


@pytest.mark.parametrize("env", [{}, BATCH, SALLOC, SRUN, OPENMPI_IN_BATCH, OPENMPI_IN_BATCH_SECOND_NODE, TORCHRUN])
def test_right_worlds_are_not_refused(env):
    check_ranks_used(resolve(env), env)


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[01-03,7],m2", ["n01", "n02", "n03", "n7", "m2"]),
        ("gpu-a[098-101]", ["gpu-a098", "gpu-a099", "gpu-a100", "gpu-a101"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("n[1,3]-ib,login.site.org", ["n1-ib", "n3-ib", "login.site.org"]),
    ],
)
def test_expand_hosts(nodelist, hosts):
    assert expand_hosts(nodelist) == hosts


@pytest.mark.parametrize(("counts", "tasks"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2])])
def test_expand_counts(counts, tasks):
    assert expand_counts(counts) == tasks
