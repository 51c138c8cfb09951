#!/usr/bin/env bash
# Makes the environment ready, quickly when it is already. Arguments go to scripts/install.py (--dev).
# PYTHON names the Python a new environment is made with; VENV_PATH the folder (default .venv).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

for own in "${VENV_PATH:-.venv}/bin/python" "${VENV_PATH:-.venv}/Scripts/python.exe"; do
    if [ -x "$own" ] && "$own" scripts/install.py --check "$@" 2>/dev/null; then
        exit 0
    fi
done

for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
        exec "$candidate" scripts/install.py "$@"
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then
        echo "Set-up: PYTHON=$PYTHON does not start, or is not Python 3.10, 3.11 or 3.12." >&2
        exit 2
    fi
done
echo "Set-up: no Python 3.10, 3.11 or 3.12 was found on the PATH. Install one (Debian, Ubuntu: apt install python3 python3-venv)," \
    "or name it: PYTHON=/path/to/python3.11 ./train.sh" >&2
exit 2
