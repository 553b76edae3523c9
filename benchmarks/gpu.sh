#!/bin/bash
# Times this package on a GPU in under 6 minutes: no network, models with random weights.
#     PYTHONPATH=TREE benchmarks/gpu.sh OUTPUT_FOLDER TOFU_FOLDER [OTHER_TREE]
# Rows come one after the other, those that matter most first; with another tree (an older commit's) they are measured in
# it too, on the same card, in the time that is left. SECONDS_AT_MOST=240 ends the whole earlier, ROWS="lora dynamic" takes
# some rows only, WHEELS=FOLDER takes packages that the machine lacks from pure-Python wheels, and DEVICE=cpu sees with
# tiny models whether all of it works. Writes NAME.TREE.json, NAME.TREE.log and table.md, and prints JSON and table.
set -eu
OUT=$1 DATA=$2 OTHER=${3:-}
HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-8} PYTHONPATH=${PYTHONPATH:-$HERE/..}
mkdir -p "$OUT"
if [ -n "${WHEELS:-}" ]; then
  for wheel in "$WHEELS"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$OUT/packages"; done
  PYTHONPATH=$PYTHONPATH:$OUT/packages
fi
exec "$PYTHON" "$HERE/gpu.py" all "$OUT" --data "$DATA" --device "${DEVICE:-cuda}" \
  --seconds "${SECONDS_AT_MOST:-345}" ${OTHER:+--other "$OTHER"} ${ROWS:+--rows $ROWS}
