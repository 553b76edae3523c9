#!/bin/bash
# TOFU on one GPU in under 10 minutes, by one process on the card: see benchmarks/gpu_tofu.py.
#     SGA_DATA=FOLDER benchmarks/gpu-tofu.sh OUTPUT_FOLDER [MODEL] [OPTIONS]
# MODEL: folder of SmolLM2-135M-Instruct (or a GGUF file), or $SGA_PRETRAINED. $SGA_DATA has a folder tofu.
# SECONDS_AT_MOST=540 ends what is not done by then; RUNS=FOLDER is where runs lie (OUTPUT_FOLDER/runs): the same command
# goes on there. SPLIT=forget10. Options go to gpu_tofu.py (--lr 1e-5, --set NAME=VALUE). Writes gpu-tofu.json and gpu-tofu.md.
set -u
OUT=${1:?name an output folder}; shift
MODEL=${SGA_PRETRAINED:-}
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then MODEL=$1; shift; fi
[ -n "$MODEL" ] || { echo "name a model's folder, or set SGA_PRETRAINED" >&2; exit 2; }
[ -d "${SGA_DATA:-}/tofu" ] || { echo "SGA_DATA=${SGA_DATA:-} has no folder tofu: set it to the folder of TOFU's files" >&2; exit 2; }
HERE=$(cd "$(dirname "$0")" && pwd)
RUNS=${RUNS:-$OUT/runs}
PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export PYTHONPATH=${PYTHONPATH:-$(dirname "$HERE")}
mkdir -p "$OUT"
common=(--folder "$RUNS" --model "$MODEL" --split "${SPLIT:-forget10}" "$@")
timeout --signal=TERM --kill-after=30 "${SECONDS_AT_MOST:-540}" "$PYTHON" "$HERE/gpu_tofu.py" run "${common[@]}" 2>&1 | tee "$OUT/log.txt"
code=${PIPESTATUS[0]}
"$PYTHON" "$HERE/gpu_tofu.py" collect "${common[@]}" --to "$OUT" || exit 1
case $code in 124 | 137) ;; *) exit "$code" ;; esac # out of time is no failure: the same command goes on
