#!/usr/bin/env bash
# The tables of docs/spod.md: about three hours on one CPU core, after benchmarks/results.sh.
#
#   SEMPA_DATA=DIR SEMPA_RUN=results/sempa benchmarks/spod.sh [OUT]
#
# SEMPA_RUN is the run of the README. A figure that is there is not measured again.
set -euo pipefail
data=${SEMPA_DATA:?names the folder of data, see docs/evaluation-data.md}
trained=${SEMPA_RUN:-results/sempa}
out=${1:-spod}
sempa=${SEMPA:-.venv/bin/sempa-mlx}
export OPENBLAS_NUM_THREADS=1
mkdir -p "$out"
gunzip -c "$data/nli/dev.jsonl.gz" > "$out/pairs.jsonl"
gunzip -c "$data/nli/train.jsonl.gz" | sed -n 1,4608p > "$out/anchors.jsonl"

system() { # NAME: what makes the vectors
  case $1 in
    base) echo --model smollm2-135m ;;
    sempa) echo --adapter-path "$trained" ;;
    joint) echo --adapter-path "$out/joint" ;;
  esac
}

fit() { # SYSTEM NAME OPTIONS...
  local place=$out/$1-$2.safetensors
  # shellcheck disable=SC2046
  [ -f "$place" ] || "$sempa" sparse fit $(system "$1") --data "$data/nli/train.jsonl.gz" \
    --out "$place" "${@:3}" --json > "$out/$1-$2.json"
}

compare() { # SYSTEM CODERS...: on test and dev
  local coders=() each
  for each in "${@:2}"; do coders+=(--coder "$each"); done
  # shellcheck disable=SC2046
  [ -f "$out/$1-test.json" ] || "$sempa" eval sparse $(system "$1") "${coders[@]}" \
    --data "$data/sts_senteval" --tasks STSB,SICKR --pairs "$out/pairs.jsonl" \
    --fit "$out/anchors.jsonl" --out "$out/$1-test.json"
  # shellcheck disable=SC2046
  [ -f "$out/$1-dev.json" ] || "$sempa" eval sparse $(system "$1") "${coders[@]}" \
    --data "$data/sts_senteval/STSB/dev.tsv" --fit "$out/anchors.jsonl" --out "$out/$1-dev.json"
}

for each in base sempa; do
  fit $each topk --k 32
  fit $each topk8 --k 8
  fit $each fista --coder fista --k 32 --epochs 1 --batch-size 512
  fit $each lexical --coder lexical --k 32
  compare $each "$out/$each"-{topk,topk8,fista,lexical}.safetensors
done

# The README's settings with the coder trained beside the adapter, from the base's coder.
[ -f "$out/joint/results.json" ] || "$sempa" train --config "$trained/config.yaml" --force \
  --set "objective.loss=sigmoid + 0.3 code" --set sparse.start="$out/base-topk.safetensors" \
  --set eval.dial=null --adapter-path "$out/joint"
compare joint "$out/joint/coder.safetensors"
for each in sempa joint; do
  # shellcheck disable=SC2046
  [ -f "$out/$each-generation.json" ] || "$sempa" eval generation $(system $each) \
    --text "$data/text/wikitext2-test.txt" --adapter-scale 1 --max-tokens 16384 \
    --out "$out/$each-generation.json"
done

# Ways to an even space: the loss's own term, in-batch negatives, maps of the base's vectors.
benchmarks/objectives.sh "$out/objectives" sigmoid "sigmoid + 0.2 uniformity" "sigmoid + embedding"
geometry() { # NAME OPTIONS...
  [ -f "$out/geometry-$1.json" ] || "$sempa" eval geometry --data "$data/sts_senteval" "${@:2}" \
    --out "$out/geometry-$1.json"
}
for map in abtt whiten standardize; do
  geometry $map --model smollm2-135m --post $map --post-fit "$out/anchors.jsonl"
done
for run in sigmoid sigmoid-0.2uniformity sigmoid-embedding; do
  geometry $run --adapter-path "$out/objectives/$run" --adapter-scale 1 --no-base
done
