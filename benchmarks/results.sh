#!/usr/bin/env bash
# The figures under "Results" in the README, from nothing: about two hours on two CPU cores.
#
#   SEMPA_DATA=DIR benchmarks/results.sh [OUT]
#
# SEMPA_DATA holds nli/train.jsonl.gz, sts/, sts_senteval/ and text/wikitext2-test.txt. On a CPU two
# single-threaded processes get more done than one with two threads, because mlx computes everything
# but matrix products on one core: base and adapter are measured side by side.
set -euo pipefail
data=${SEMPA_DATA:?names the folder of data, see docs/evaluation-data.md}
out=${1:-results}
sempa=${SEMPA:-.venv/bin/sempa-mlx}
export OPENBLAS_NUM_THREADS=1
mkdir -p "$out"

sts() { # NAME ARGUMENTS...: both protocols of one system
  local name=$1
  shift
  "$sempa" eval sts "$@" --data "$data/sts_senteval" --out "$out/$name-senteval.json"
  "$sempa" eval sts "$@" --data "$data/sts" --protocol mteb --tasks STSB,SICKR \
    --out "$out/$name-raw.json"
}

base() {
  sts prompteol --model smollm2-135m --method prompteol
  sts mean --model smollm2-135m --method mean
}

train() {
  "$sempa" train --config sempa --adapter-path "$out/sempa" --force \
    --data "$data/nli/train.jsonl.gz" --set data.limit=4096 --learning-rate 3e-4 \
    --set eval.data="$data/sts/STSB/dev.tsv" --set eval.pairs=300 --set eval.every=8 \
    --set eval.patience=null --set eval.dial=null
}

base > "$out/base.log" 2>&1 &
train > "$out/train.log" 2>&1 &
wait -n # either may fail
wait -n

sts sempa --no-base --adapter-path "$out/sempa" --adapter-scale 1 > "$out/sempa.log" 2>&1 &
"$sempa" eval generation --text "$data/text/wikitext2-test.txt" --adapter-path "$out/sempa" \
  --adapter-scale 0.25 --adapter-scale 0.5 --adapter-scale 1 --max-tokens 65536 \
  --out "$out/generation.json" > "$out/generation.log" 2>&1 &
wait -n # either may fail
wait -n
tail -n 25 "$out"/*.log
