#!/usr/bin/env bash
# Sets everything up in .venv, then runs the tests in two processes of one thread; arguments go to pytest. The tests of the
# web page need packages of their own, and an installed Chromium.
with_demo=yes
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n 2 --dist worksteal "$@"
