#!/bin/bash
# Times this package on a GPU in under 6 minutes: no network, models with random weights.
#     PYTHONPATH=TREE benchmarks/gpu.sh OUTPUT_FOLDER TOFU_FOLDER [OTHER_TREE]
# With another tree (an older commit's, say) all rows are measured in it too, on the same card. SECONDS_AT_MOST=240 ends
# what is not done by then; ROWS="lora dynamic" takes some rows only. Writes NAME.TREE.json, logs.txt and table.md.
set -u
OUT=$1 DATA=$2 OTHER=${3:-}
HERE=$(cd "$(dirname "$0")" && pwd)
END=$(( $(date +%s) + ${SECONDS_AT_MOST:-350} ))
PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}
mkdir -p "$OUT"; rm -f "${TMPDIR:-/tmp}"/sga-gpu-benchmark-*.lock
NEW=${PYTHONPATH:-}
echo "C compiler for Triton: $(command -v gcc || command -v cc || command -v clang || echo none: blocks stay uncompiled)" | tee "$OUT/logs.txt"
MEMORY=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1); MEMORY=${MEMORY:-0}

# One row in one tree, ended when time is over. one NAME TREE SECONDS [OPTIONS]
one() {
  local left=$(( END - $(date +%s) )) path=$NEW
  [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $1 "* ]] && return
  [ "$left" -lt 15 ] && return
  [ "$2" = before ] && path=$OTHER:$NEW
  PYTHONPATH=$path SGA_TREE=$2 timeout $(( left < $3 ? left : $3 )) "$PYTHON" "$HERE/gpu.py" row "$1" --data "$DATA" \
    --output "$OUT/$1.$2.json" "${@:4}" > "$OUT/$1.$2.log" 2>&1 || tail -3 "$OUT/$1.$2.log"
}
# Side by side where memory allows: all compile together and are timed one after the other, alone where that is soon.
many() {
  if [ "$MEMORY" -gt 120000 ]; then
    one step-1b "$1" 100 & one dynamic "$1" 110 & one lora "$1" 120 & one evaluation "$1" 110 & wait
  else
    one step-1b "$1" 90 & one lora "$1" 120 & wait
    one dynamic "$1" 100 & one evaluation "$1" 110 & wait
  fi
}
large() { if [ "$MEMORY" -gt 120000 ]; then one step-7b "$1" 90 --quick; fi; }

many after
large after
if [ -n "$OTHER" ]; then many before; large before; fi
cat "$OUT"/*.log >> "$OUT/logs.txt"; rm -f "$OUT"/*.log
PYTHONPATH=$NEW "$PYTHON" "$HERE/gpu.py" table "$OUT" | tee "$OUT/table.md"
