#!/usr/bin/env bash
# Fresh machine to passed tests: environment, lint, types, every test. Arguments go to pytest, e.g. -m "not slow".
set -euo pipefail
cd "$(dirname "$0")/.."
bash dev/setup.sh dev,elpv
bash dev/lint.sh
venv="${VENV:-.venv}"
# One thread per process: two test processes on two cores.
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 -ra "$@"
