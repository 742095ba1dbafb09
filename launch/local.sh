#!/usr/bin/env bash
# Starts N processes of one run on this machine, each with its share of the GPUs:
#   launch/local.sh N --config=configs/lunet_bilevel.py [--workdir=DIR ...]
# It ends when all have ended, with the status of the first that failed (75: saved, run it again);
# the others are ended too, at the latest after a minute.
set -u
N=${1:?usage: launch/local.sh N --config=FILE [--flag=value ...]}
shift
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
GPUS=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
if ((GPUS > 0 && GPUS % N != 0)); then
  echo "error: $GPUS GPUs cannot be shared equally by $N processes" >&2
  exit 2
fi

declare -A rank  # by process id
for ((i = 0; i < N; i++)); do
  if ((GPUS > 0)); then
    CUDA_VISIBLE_DEVICES=$(seq -s, $((i * GPUS / N)) $(((i + 1) * GPUS / N - 1)))
    export CUDA_VISIBLE_DEVICES
  fi
  "$PYTHON" -m tvjax.main --multihost --coordinator="localhost:$PORT" --num_processes="$N" \
    --process_id="$i" "$@" &
  rank[$!]=$i
done
trap 'kill -TERM "${!rank[@]}" 2>/dev/null' INT TERM

failed=0
while ((${#rank[@]})); do
  wait -n -p ended "${!rank[@]}"
  status=$?
  if [[ -z ${ended:-} ]]; then continue; fi # interrupted by a signal that was passed on
  if ((status != 0 && failed == 0)); then
    failed=$status
    if ((status != 75)); then
      echo "error: process ${rank[$ended]} of $N ended with status $status; ending the others." \
        "The same command resumes from the newest checkpoint" >&2
    fi
    left=("${!rank[@]}")
    (sleep 60 && kill -KILL "${left[@]}") >/dev/null 2>&1 &
    reaper=$!
  fi
  unset "rank[$ended]"
done
if ((failed)); then kill "$reaper" 2>/dev/null; fi
exit "$failed"
