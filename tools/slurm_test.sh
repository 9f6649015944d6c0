#!/usr/bin/env bash
# tools/slurm_test.sh PARTITION JOB_NAME CONFIG|benchmark [options of tools/test.py or tools/benchmark.py]
# GPUS (default 8; 0: NTASKS processes on the CPU), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are read from
# the environment. SIGTERM ends the images in hand; the exit status is then 75, and the same command goes on.
set -euo pipefail
[ $# -ge 3 ] ||
  { echo "usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG|benchmark [options of the tool]" >&2; exit 2; }
partition=$1 job=$2 tools=$(dirname "$0")
tool=("$tools/test.py" "$3")
[ "$3" != benchmark ] || tool=("$tools/benchmark.py")
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
if [ "$gpus" -gt 0 ]; then
  resources=("--gres=gpu:$per_node" "--ntasks=$gpus" "--ntasks-per-node=$per_node")
else
  resources=("--ntasks=${NTASKS:-2}")
fi
export FSA_SEG_ERROR_FILE="$PWD/.error_of_$job.$$"  # the first process that fails says why, once
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"  # a lost connection is said in one line, without a stack
set -m  # srun gets its signals from here, and SIGINT is not ignored, as it is in the background without job control
# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
srun -p "$partition" --job-name="$job" "${resources[@]}" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} python -u "${tool[@]}" --launcher slurm "$@" < /dev/null &
srun=$!
for name in INT TERM; do
  # shellcheck disable=SC2064  # the names are those of now
  trap "kill -$name $srun 2> /dev/null || true" "$name"
done
status=0
wait "$srun" || status=$?
while kill -0 "$srun" 2> /dev/null; do  # a signal has ended `wait`
  status=0
  wait "$srun" || status=$?
done
if [ -f "$FSA_SEG_ERROR_FILE" ]; then
  cat "$FSA_SEG_ERROR_FILE" >&2
  rm -f "$FSA_SEG_ERROR_FILE"
  exit 1
elif [ "$status" -eq 75 ] || [ "$status" -eq 143 ]; then
  echo 'stopped by the scheduler: results already written stay, and the same command goes on from them' >&2
  exit 75
fi
exit "$status"
