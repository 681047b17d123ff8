#!/usr/bin/env bash
# Makes a virtual environment and installs the project into it. VENV chooses the folder (default .venv).
# Usage: bash dev/setup.sh [extra,extra]     e.g. bash dev/setup.sh elpv
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
extras="${1:-}"
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "Python >= 3.10 is needed; $("$python" --version) was found. Set PYTHON to a newer one." >&2
  exit 1
}
# A venv that was begun without Debian's python3-venv has a Python but no pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear "$venv" || {
    echo "The venv module is missing: run 'apt-get install python3-venv' and start again." >&2
    exit 1
  }
fi
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --editable ".${extras:+[$extras]}"
echo "Installed into $venv: $("$venv/bin/vissl-like" --version)"
