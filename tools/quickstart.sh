#!/usr/bin/env bash
# Sets everything up in .venv, then runs six methods with and without FSA on the eight mini splits: the suite's table. Ends
# with status 1 if one of its 96 numbers is not as expected; they are float32's, which is asked for on a GPU too.
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec python tools/benchmark.py --mini --precision fp32 --golden data/mini/golden.json --work-dir work_dirs/quickstart \
  --picture work_dirs/quickstart/rows.png --picture-of context59 --save-labels --report "$@"
