#!/usr/bin/env bash
# tools/dist_test.sh CONFIG|benchmark GPUS [options of tools/test.py or tools/benchmark.py]
# One process per GPU (NCCL), or GPUS processes on the CPU (gloo) where there is no GPU.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for torchrun.
# SIGTERM ends the images in hand; the exit status is then 75, and the same command goes on.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: tools/dist_test.sh CONFIG|benchmark GPUS [options of the tool]" >&2; exit 2; }
tools=$(dirname "$0") gpus=$2
tool=("$tools/test.py" "$1")
[ "$1" != benchmark ] || tool=("$tools/benchmark.py")
shift 2
exec python "$tools/launch.py" --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" "${tool[@]}" --launcher pytorch "$@"
