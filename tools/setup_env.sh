# Sourced by quickstart.sh, run_tests.sh and check.sh: goes to the repository's root and puts a current .venv first in PATH.
# Needs Python 3.10 or newer. PYTHON=... names another interpreter than python3, VENV=... another folder than .venv, and
# CONSTRAINTS=FILE versions (constraints/). A folder that this script did not make stays as it is. A script that needs the
# packages of the web page as well sets with_demo; with CONSTRAINTS they are left out (CONTRIBUTING.md, Stacks).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-python3} venv=${VENV:-.venv}
command -v "$python" >/dev/null || die "$python not found; install Python 3.10 or newer, or set PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || die "$("$python" --version 2>&1) is too old; Python 3.10 or newer is needed (set PYTHON=/path/to/python3)"

demo=
[ -z "${with_demo:-}" ] || [ -n "${CONSTRAINTS:-}" ] || demo=,test-demo
stamp=$venv/installed demo_stamp=$venv/installed_demo ours=$venv/made_by_setup_env
[ "$(head -n 1 "$stamp" 2>/dev/null)" != "$PWD" ] || touch "$ours"  # of an earlier version of this script
if [ ! -f "$ours" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
  die "$venv was not made by this script and stays as it is. Either name another folder, VENV=.venv-fsa_seg bash ${0/#$PWD\//};" \
    "or install into $venv yourself: $venv/bin/python -m pip install -e '.[test$demo]'" \
    "(without pip: uv pip install --python $venv/bin/python -e '.[test$demo]'), and run $venv/bin/fsa-seg or $venv/bin/python -m pytest"
fi
current=$(pwd; "$python" --version; cat pyproject.toml requirements.txt setup.py ${CONSTRAINTS:+"$CONSTRAINTS"})
is_current() { [ -f "$1" ] && [ "$(cat "$1")" = "$current" ]; }
if ! is_current "$stamp" || { [ -n "$demo" ] && ! is_current "$demo_stamp"; }; then
  echo "setting up $venv (several minutes and about 6 GB the first time; log: $venv/install.log)"
  if [ "$("$venv/bin/python" --version 2>/dev/null)" != "$("$python" --version)" ] || ! "$venv/bin/python" -m pip --version &>/dev/null; then
    rm -rf "$venv"
    mkdir -p "$venv" && touch "$ours" && "$python" -m venv "$venv" \
      || die "cannot make $venv; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  rm -f "$demo_stamp"  # an installation without the page's packages may move their versions
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off ${CONSTRAINTS:+-c "$CONSTRAINTS"} -e ".[test$demo]" > "$venv/install.log" 2>&1 || {
    tail -n 5 "$venv/install.log" >&2
    die "the installation failed; see $venv/install.log. If a download failed, run the same command again: it goes on with what is cached"; }
  printf '%s' "$current" > "$stamp"
  [ -z "$demo" ] || printf '%s' "$current" > "$demo_stamp"
fi
"$venv/bin/python" -c 'import cv2' 2> "$venv/cv2.log" || {
  tail -n 1 "$venv/cv2.log" >&2
  die "OpenCV cannot be imported; if libGL or libgthread is missing: apt-get install libgl1 libglib2.0-0 (Debian, Ubuntu)"; }
PATH="$(cd "$venv/bin" && pwd):$PATH"
