#!/usr/bin/env bash
# Sets the environment up if needed, with the test tools, then runs the tests; arguments go to pytest.
# TEST_WORKERS is the number of test processes (0 runs everything in one).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
scripts/setup.sh --dev

python="${VENV_PATH:-.venv}/bin/python"
[ -e "$python" ] || python="${VENV_PATH:-.venv}/Scripts/python.exe"
# One thread per process keeps sums in one order; nothing may ask the network.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# Worksteal: the slow tests stand together, and one process would be left alone with them.
exec "$python" -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
