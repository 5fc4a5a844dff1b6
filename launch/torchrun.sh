#!/usr/bin/env bash
# torchrun, once on each node; arguments are dist-diffusion's:
#   launch/torchrun.sh train CONFIG.yaml run_dir=DIR
# Several nodes: NNODES=4 NODE_RANK=0..3 MASTER_ADDR=HOST [MASTER_PORT=29500]. NPROC defaults to the node's GPUs, else its cores.
set -euo pipefail
venv_bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
if [ "${NNODES:-1}" = 1 ]; then
    where=(--standalone)
else
    where=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
exec "$venv_bin/torchrun" "${where[@]}" --nproc-per-node "${NPROC:-auto}" -m dist_diffusion "$@"
