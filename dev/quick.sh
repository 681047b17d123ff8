#!/usr/bin/env bash
# Fresh machine to result: environment, real images (2,624 photos of solar cells), pre-training without labels,
# evaluation beside its floors, report. Any argument is passed on, e.g. bash dev/quick.sh config.SEED=1
set -euo pipefail
cd "$(dirname "$0")/.."
bash dev/setup.sh elpv
venv="${VENV:-.venv}"
"$venv/bin/python" extra_scripts/prepare_elpv.py --out data/elpv
exec "$venv/bin/python" tools/run_distributed_engines.py config=quick/elpv config.ENGINE=full "$@"
