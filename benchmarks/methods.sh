#!/usr/bin/env bash
# The table of methods in docs/evaluation.md: about four hours on one CPU core.
#
#   SEMPA_DATA=DIR benchmarks/methods.sh [OUT]
#
# SEMPA_DATA holds sts_senteval/ and nli/train.jsonl.gz. A figure that is there is not measured again.
set -euo pipefail
data=${SEMPA_DATA:?names the folder of data, see docs/evaluation-data.md}
out=${1:-methods}
sempa=${SEMPA:-.venv/bin/sempa-mlx}
export OPENBLAS_NUM_THREADS=1
mkdir -p "$out"

sts() { # NAME ARGUMENTS...
  local file=$out/$1.json
  shift
  [ -f "$file" ] || "$sempa" eval sts --model smollm2-135m --data "$data/sts_senteval" "$@" \
    --out "$file"
}

for method in prompteol mean tp cp prompteol-icl pretcot ke last weighted-mean echo metaeol; do
  sts "$method" --tasks STSB,SICKR --method "$method"
done
gunzip -c "$data/nli/train.jsonl.gz" | sed -n 1,4608p > "$out/anchors.jsonl"
for map in abtt whiten standardize; do
  sts "prompteol-$map" --tasks STSB,SICKR --method prompteol \
    --post "$map" --post-fit "$out/anchors.jsonl"
done
for method in prompteol mean tp cp prompteol-icl pretcot ke last weighted-mean echo; do
  sts "tuned-$method" --tasks STSB --method "$method" \
    --tune --tune-pairs 500 --tuned "$out/parameters-$method.json"
done
