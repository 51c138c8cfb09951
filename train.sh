#!/usr/bin/env bash
# Sets the environment up if needed, then trains config/config.json; without a configuration, runs the demonstration.
# Arguments go to `simpletuner train`. ENV=name trains config/name/; VENV_PATH, PYTHON and SIMPLETUNER_TORCH: docs/install.md.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
scripts/setup.sh

program="${VENV_PATH:-.venv}/bin/simpletuner"
[ -e "$program" ] || program="${VENV_PATH:-.venv}/Scripts/simpletuner.exe"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

configured=false
for file in config.json config.toml config.env config/config.json config/config.toml config/config.env; do
    if [ -e "$file" ]; then configured=true; fi
done
if $configured || [ -n "${ENV:-}" ] || [ $# -gt 0 ]; then
    exec "$program" train "$@"
fi
echo "No config/config.json here, so this is the demonstration (simpletuner demo)."
exec "$program" demo
