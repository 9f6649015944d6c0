#!/usr/bin/env bash
# Sets everything up in .venv, then runs five methods with and without FSA on the eight mini splits: the suite's table.
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
# Large blocks are kept rather than given back to the system and cleared anew each time (glibc; some 10 % of the time).
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
exec python tools/benchmark.py --mini --work-dir work_dirs/quickstart --picture work_dirs/quickstart/rows.png --picture-of context59 "$@"
