#!/usr/bin/env bash
# For each Python named (default: 3.10 3.12): does the pinned set resolve, and do the tests that need no torch pass?
# Environments are made in a temporary folder; torch itself is left out, which saves gigabytes where only the
# build for NVIDIA can be had. Further arguments after -- go to pytest.
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root"

versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do versions+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#versions[@]} -gt 0 ] || versions=(3.10 3.12)

# Everything the rooms without torch import, and what runs their tests; versions come from constraints.txt.
packages=(numpy pillow av pydantic rich json-five tomli jinja2 psutil huggingface-hub safetensors fsspec questionary zstandard cryptography
    pytest pytest-xdist hypothesis codespell)
tests=(tests/contracts tests/unit/core tests/unit/config tests/unit/cli tests/unit/events tests/unit/scripts)

place="$(mktemp -d "${TMPDIR:-/tmp}/pythons-XXXXXX")"
trap 'rm -rf -- "$place"' EXIT
failed=0
for version in "${versions[@]}"; do
    python="python$version"
    if ! "$python" -c 'pass' 2>/dev/null; then
        echo "== Python $version: not on this machine" >&2
        failed=1
        continue
    fi
    echo "== $("$python" --version)"
    "$python" scripts/install.py --plan || failed=1
    if command -v uv >/dev/null; then
        uv pip compile --quiet --python-version "$version" --extra cpu --extra dev -c constraints.txt pyproject.toml \
            >"$place/resolved" && echo "Resolved: $(grep -c == "$place/resolved") packages" || failed=1
    fi
    "$python" -m venv "$place/$version"
    "$place/$version/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary -c constraints.txt "${packages[@]}"
    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH="$root" \
        "$place/$version/bin/python" -m pytest -q -p no:cacheprovider -m "not needs_torch and not slow and not gpu and not network" \
        "${tests[@]}" "$@" || failed=1
done
exit "$failed"
