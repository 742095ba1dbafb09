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
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-$(nvidia-smi --list-gpus 2>/dev/null |
  awk '/^GPU/ { printf "%s%d", n ? "," : "", n; n++ }')}"
if ((${#gpus[@]} % N)); then
  echo "error: ${#gpus[@]} GPUs cannot be shared equally by $N processes" >&2
  exit 2
fi

pids=()
for ((i = 0; i < N; i++)); do
  if ((${#gpus[@]})); then
    share=("${gpus[@]:i * ${#gpus[@]} / N:${#gpus[@]} / N}")
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${share[*]}")
    export CUDA_VISIBLE_DEVICES
  fi
  "$PYTHON" -m tvjax.main --multihost --coordinator="localhost:$PORT" --num_processes="$N" \
    --process_id="$i" "$@" &
  pids[i]=$!
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM

failed=0
while ((${#pids[@]})); do
  sleep 0.2
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    wait "${pids[i]}"
    status=$?
    unset "pids[i]"
    if ((status != 0 && failed == 0)); then
      failed=$status
      deadline=$((SECONDS + 60))
      if ((status != 75)); then
        echo "error: process $i of $N ended with status $status; ending the others." \
          "The same command resumes from the newest checkpoint" >&2
      fi
    fi
  done
  if ((failed && SECONDS > deadline && ${#pids[@]})); then kill -KILL "${pids[@]}"; fi
done
exit "$failed"
