#!/usr/bin/env bash
# Runs a tool of the project's environment (VENV_PATH, default .venv), from the root of the checkout.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
PATH="$(cd -- "${VENV_PATH:-.venv}" && pwd)/bin:$PATH" exec "$@"
