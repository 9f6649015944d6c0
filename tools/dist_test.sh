#!/usr/bin/env bash
# tools/dist_test.sh CONFIG GPUS [options of tools/test.py]
# One process per GPU (NCCL), or GPUS processes on the CPU (gloo) where there is no GPU.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for torchrun.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: tools/dist_test.sh CONFIG GPUS [options of tools/test.py]" >&2; exit 2; }
config=$1 gpus=$2
shift 2
exec python "$(dirname "$0")/launch.py" --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$(dirname "$0")/test.py" "$config" --launcher pytorch "$@"
