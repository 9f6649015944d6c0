#!/usr/bin/env bash
# Sets everything up in .venv, then runs all checks of the code's form and types; status 1 if a check failed.
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
status=0

check() {
  local printed
  if printed=$(python -m "$@" 2>&1); then
    echo "$*: passed"
  else
    status=1
    echo "$*: failed"
    printf '%s\n' "$printed"
  fi
}

check ruff check .
check ruff format --check .
check mypy
exit $status
