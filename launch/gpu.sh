#!/usr/bin/env bash
# Runs experiments/gpu.py by the machine's own Python, with the wheels that launch/wheels.sh fetched:
#
#     launch/gpu.sh [FLAGS OF experiments/gpu.py]       # e.g. --minutes=6 --data=TILES
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=build/wheels
if compgen -G "$wheels/*.whl" > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-compile \
        --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    set -- --commit="$(cat "$wheels/commit")" "$@"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
name=$("$python" -c 'import jax; print(jax.devices()[0].device_kind.replace(" ", "_"))')
"$python" -m experiments.gpu --out="results/gpu/$name" "$@"
