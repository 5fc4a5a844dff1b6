#!/usr/bin/env bash
# torchrun, once on each node; arguments are dist-diffusion's:
#   launch/torchrun.sh train CONFIG.yaml run_dir=DIR
# Several nodes: NNODES=4 NODE_RANK=0..3 MASTER_ADDR=HOST [MASTER_PORT=29500]. NPROC defaults to the node's GPUs, else its cores.
set -euo pipefail
venv_bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
exec "$venv_bin/torchrun" \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "${NPROC:-auto}" \
    --master-addr "${MASTER_ADDR:-localhost}" --master-port "${MASTER_PORT:-29500}" \
    -m dist_diffusion "$@"
