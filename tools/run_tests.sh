#!/usr/bin/env bash
# Sets everything up in .venv, then runs the tests; arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec python -m pytest "$@"
