#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: the tests marked gpu, then the table of steps,
# encoding and memory in benchmarks/gpu_<card>_<yyyymm>.md. Each part is a process of its own with a time limit,
# so that what fails or takes too long costs itself only.
#
#   benchmarks/gpu.sh                    all parts
#   benchmarks/gpu.sh --only rate vae    some of them
#   benchmarks/gpu.sh --miniature        the same ways with a tiny model on any machine; its numbers mean nothing
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-}"
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
exec "$python" benchmarks/gpu.py "$@"
