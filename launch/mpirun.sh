#!/usr/bin/env bash
# mpirun with the environment that training ranks need; arguments are mpirun's own:
#   launch/mpirun.sh -np 8 .venv/bin/dist-diffusion train CONFIG.yaml run_dir=DIR
#   launch/mpirun.sh -np 16 --hostfile HOSTS .venv/bin/dist-diffusion train CONFIG.yaml run_dir=DIR
set -euo pipefail
venv_bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin

# Open MPI refuses root (containers) and more ranks than cores, unless told otherwise. MPICH ignores these.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# Unbound: a rank's decode workers would otherwise share the one core that Open MPI pins the rank to.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none

# The wheel's mpirun is there only where the machine had none, and is then the one that mpi4py talks to.
if [ -x "$venv_bin/mpirun" ]; then exec "$venv_bin/mpirun" "$@"; fi
exec mpirun "$@"
