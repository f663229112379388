#!/usr/bin/env bash
# What only a GPU can show, in one call of at most nine minutes; what ended is in OUT, a file each.
#
#     bash studies/gpu.sh runs/gpu                                 # on a machine with a GPU
#     SIZES=tiny ROWS=2 CONTEXTS=64 STEP=tiny bash studies/gpu.sh  # without one: the same commands, small
#
# A part that does not fit the card fails alone; 3B with 64 rows of 6,144 tokens is the largest.
# STUDENT and TEACHER, two checkpoints, make the last part: a run of F2B for the time that is left. The same
# call again goes on with it.
set -u -o pipefail
OUT=$(realpath -m "${1:-runs/gpu}")
cd "$(dirname "$0")/.."
SIZES=${SIZES:-1.5B 3B} ROWS=${ROWS:-16 64} CONTEXTS=${CONTEXTS:-2048 6144}
STEP=${STEP:-1.5B 3B} STUDENT=${STUDENT:-tiny-student} TEACHER=${TEACHER:-tiny-teacher}
MINUTES=${MINUTES:-9}
mkdir -p "$OUT"

part() {  # a part by its name and its most seconds, no longer than what is left; it may fail
    local name=$1 most=$2 left=$((MINUTES * 60 - SECONDS))
    shift 2
    [ "$left" -gt 5 ] || { echo "$name: no time left"; return; }
    timeout --signal INT --kill-after 10 $((most < left ? most : left)) "$@" > "$OUT/$name.txt" 2>&1
    echo "$name: status $?, $SECONDS s so far"
}

part tests 120 python -m pytest -q tests/test_model.py tests/test_loss.py tests/test_rollout.py tests/test_drawing.py
read -r student teacher <<< "$STEP"
part step 90 python studies/bench.py --what step --student "$student" --teacher "${teacher:-$student}" \
    --batch-tokens "${BATCH_TOKENS:-16384}" --length 4096
for size in $SIZES; do
    for rows in $ROWS; do
        for context in $CONTEXTS; do
            part "token-$size-$rows-$context" 60 python studies/bench.py --what token \
                --student "$size" --rows "$rows" --context "$context"
        done
    done
done
part pair 540 python tcod.py --student "$STUDENT" --teacher "$TEACHER" --data generated --eval-every 0 \
    --save-every 1 --out "$OUT/pair"
grep -h -E "passed|failed|a token|equal|forward and backward" "$OUT"/*.txt
[ ! -f "$OUT/pair/log.jsonl" ] || python - "$OUT/pair/log.jsonl" <<'END'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    log = [json.loads(line) for line in file]
seconds = {part: sum(record["seconds"][part] for record in log) / len(log) for part in ("play", "train")}
print(f"pair: {len(log)} steps, {seconds['play']:.2f} s of play and {seconds['train']:.2f} of training a step, "
      f"mismatch up to {max(record['mismatch'] for record in log):.2g}")
END
