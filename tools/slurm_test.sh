#!/usr/bin/env bash
# tools/slurm_test.sh PARTITION JOB_NAME CONFIG [options of tools/test.py]
# GPUS (default 8; 0: NTASKS processes on the CPU), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are read from
# the environment.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG [options of tools/test.py]" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
if [ "$gpus" -gt 0 ]; then
  resources=("--gres=gpu:$per_node" "--ntasks=$gpus" "--ntasks-per-node=$per_node")
else
  resources=("--ntasks=${NTASKS:-2}")
fi
export FSA_SEG_ERROR_FILE="$PWD/.error_of_$job.$$"  # the first process that fails says why, once
status=0
# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
srun -p "$partition" --job-name="$job" "${resources[@]}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 ${SRUN_ARGS:-} python -u "$(dirname "$0")/test.py" "$config" --launcher slurm "$@" || status=$?
[ ! -f "$FSA_SEG_ERROR_FILE" ] || { cat "$FSA_SEG_ERROR_FILE" >&2; rm -f "$FSA_SEG_ERROR_FILE"; }
exit "$status"
