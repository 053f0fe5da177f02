#!/usr/bin/env bash
# The table of docs/objectives.md: the same 1,024 triplets, seed, rate and steps for every loss.
#
#   SEMPA_DATA=DIR benchmarks/objectives.sh [OUT] [LOSS...]
#
# About 15 minutes a loss on one CPU core, and 10 more for the first, which fills the cache of
# reference log-probabilities. A loss that has its figures in OUT is not run again. Rows are those
# with a neutral sentence, so that rankings see the same anchors. `simpo` takes beta 2, as its
# authors do; all others 0.1.
set -euo pipefail
data=${SEMPA_DATA:?names the folder of data, see docs/evaluation-data.md}
out=${1:-objectives}
shift || true
sempa=${SEMPA:-.venv/bin/sempa-mlx}
python=${PYTHON:-.venv/bin/python}
export OPENBLAS_NUM_THREADS=1
mkdir -p "$out"
losses=("$@")
if [ ${#losses[@]} -eq 0 ]; then
  losses=(sigmoid "embedding" "sigmoid + embedding" "sigmoid + 0.2 sft" listwise softmax ipo simpo)
fi

rows="$out/rows.jsonl"
"$python" - "$data/nli/train.jsonl.gz" "$rows" <<'PYTHON'
import gzip, itertools, json, sys

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as source, open(sys.argv[2], "w") as target:
    ranked = (line for line in source if json.loads(line).get("neutral"))
    target.writelines(itertools.islice(ranked, 1024))
PYTHON

for loss in "${losses[@]}"; do
  name=$(echo "$loss" | tr -d ' ' | tr '+' '-')
  run="$out/$name"
  beta=0.1
  [ "$loss" = simpo ] && beta=2.0
  if [ ! -f "$run/results.json" ]; then
    "$sempa" train --config sempa --adapter-path "$run" --force --data "$rows" --beta $beta \
      --learning-rate 3e-4 --set "objective.loss=$loss" --set eval.data="$data/sts/STSB/dev.tsv" \
      --set eval.pairs=300 --set eval.every=8 > "$run.log" 2>&1
  fi
  # The adapter at full strength; what the dial makes of it is in results.json.
  if [ ! -f "$run-generation.json" ]; then
    "$sempa" eval generation --text "$data/text/wikitext2-test.txt" --adapter-path "$run" \
      --adapter-scale 1 --adapter-scale 0.5 --max-tokens 16384 --out "$run-generation.json" \
      >> "$run.log" 2>&1
  fi
done
