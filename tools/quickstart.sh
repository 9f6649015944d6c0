#!/usr/bin/env bash
# Sets everything up in .venv, then runs five methods with and without FSA on the eight mini splits: the suite's table.
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec python tools/benchmark.py --mini --work-dir work_dirs/quickstart --picture work_dirs/quickstart/rows.png --picture-of context59 "$@"
