#!/usr/bin/env bash
# Fetches what a GPU machine without network lacks, as wheels for Python 3.12 on x86-64 Linux:
#
#     launch/wheels.sh [FOLDER]          # default: build/wheels
#
# Such a machine is taken to have JAX with CUDA, flax, optax, orbax-checkpoint, matplotlib, Pillow,
# scipy and tqdm. Carry the folder there inside the checkout; `make gpu` unpacks and uses it.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/wheels}
names=(array_record beartype dm-tree docstring_parser googleapis-common-protos grain immutabledict
       importlib_resources ml_collections portpicker pycocotools simple-parsing tensorboardX
       tensorflow-datasets tensorflow-metadata termcolor toml)
mkdir -p "$folder"
python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --constraint constraints.txt --dest "$folder" "${names[@]}"
# It is published as source alone; pure Python, so the wheel serves any version.
python3 -m pip --disable-pip-version-check wheel --quiet --no-deps \
    --constraint constraints.txt --wheel-dir "$folder" promise
git rev-parse --short=12 HEAD > "$folder/commit"
ls -l "$folder"
total=$(du -sm "$folder" | cut -f1)
echo "$total MB in $folder"
test "$total" -lt 60
