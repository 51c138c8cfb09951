#!/usr/bin/env bash
# Plays a newcomer: clones HEAD into a temporary folder and runs ./train.sh and ./test.sh there with an empty
# environment, then tells how long each took and how much it installed. FRESH_KEEP=1 keeps the clone.
# PYTHON and SIMPLETUNER_INSTALLER choose what is tried; what package installers need to reach their sources is kept.
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
git -C "$root" rev-parse --quiet --verify HEAD >/dev/null || { echo "fresh: nothing is committed yet" >&2; exit 2; }

place="$(mktemp -d "${TMPDIR:-/tmp}/fresh XXXXXX")"
tidy() { if [ -n "${FRESH_KEEP:-}" ]; then echo "kept: $place"; else rm -rf -- "$place"; fi; }
trap tidy EXIT
mkdir "$place/home"
git clone --quiet -- "$root" "$place/simpletuner"
# Tests of real clips look for them beside the checkout and skip where they are not.
if [ -d "$root/../shared" ]; then ln -s -- "$(cd -- "$root/../shared" && pwd)" "$place/shared"; fi

kept=(HOME="$place/home" PATH="$PATH" TERM="${TERM:-dumb}" LANG="${LANG:-C.UTF-8}")
while IFS='=' read -r -d '' name value; do
    case "$name" in
        PIP_* | UV_* | SSL_CERT_* | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | PYTHON | SIMPLETUNER_INSTALLER | SIMPLETUNER_TORCH | \
            http_proxy | https_proxy | no_proxy | HTTP_PROXY | HTTPS_PROXY | NO_PROXY) kept+=("$name=$value") ;;
    esac
done < <(env -0)

failed=0
attempt() {
    local begun=$SECONDS code=0
    echo "== $*"
    (cd -- "$place/simpletuner" && env -i "${kept[@]}" "$@") || code=$?
    report+=("$(printf '%-28s %4d s   exit code %d' "$*" $((SECONDS - begun)) "$code")")
    [ "$code" = 0 ] || failed=1
}
report=()
attempt ./train.sh
attempt scripts/setup.sh
attempt ./test.sh
echo "== commit $(git -C "$place/simpletuner" rev-parse --short HEAD), $("$place/simpletuner/.venv/bin/python" --version)"
printf '%s\n' "${report[@]}"
du -sk "$place/simpletuner/.venv" | awk '{printf "installed: %.2f GB\n", $1 * 1024 / 1e9}'
exit "$failed"
