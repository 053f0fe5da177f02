#!/usr/bin/env bash
# The runs behind docs/results.md: which recipe embeds best, and what it costs the generator.
#
#   SEMPA_DATA=DIR benchmarks/recipes.sh OUT [SYSTEM...]
#   python benchmarks/recipes.py OUT            # the table and the plot of what is there
#
# A system that has a figure in OUT is not measured again, so the script can be stopped and started,
# and PARTS may name a few of: train senteval raw standardize generation tasks geometry tokens, where
# standardize means senteval and raw of the mapped vectors too.
# Training takes the first ROWS NLI triplets (all of them unless told) and keeps the best step on
# PAIRS pairs of STS-B dev (null: all). On one CPU core a training run takes hours, an evaluation
# half an hour; on a GPU both take minutes. Seeds other than 0 are written NAME@SEED. OPTIONS go to
# every training as they are, SCALES are those at which perplexity is taken.
set -euo pipefail
data=${SEMPA_DATA:?names the folder of data, see docs/evaluation-data.md}
out=${1:?where the results go}
shift
sempa=${SEMPA:-.venv/bin/sempa-mlx}
model=${MODEL:-smollm2-135m}
rows=${ROWS:-25371}
pairs=${PAIRS:-500}
questions=${QUESTIONS:-500}
tokens=${TOKENS:-65536}
scales=${SCALES:-0.25 0.5 0.75 1}
rate=${RATE:-1e-3} # of the systems that train embeddings
dpo_rate=${DPO_RATE:-3e-4} # of those that only prefer
parts=" ${PARTS:-train senteval raw standardize generation tasks geometry tokens} "
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
mkdir -p "$out"

all=(prompteol prompteol-icl ke metaeol standardize sempa sempa-held embedding bridge held paper
  norm-held bridge-0.2 bridge-5 listwise spod sempa@1 sempa@2 embedding@1 embedding@2 bridge@1
  bridge@2 held@1 held@2)
systems=("$@")
[ ${#systems[@]} -gt 0 ] || systems=("${all[@]}")

write_questions() { # another text for the KL term: no answers, and nothing that is measured
  "${PYTHON:-.venv/bin/python}" - "$data/lm/mmlu_test.jsonl.gz" "$out/questions.txt" <<'PYTHON'
import gzip, json, sys

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as source, open(sys.argv[2], "w") as target:
    target.writelines(" ".join(json.loads(row)["question"].split()) + "\n" for row in source)
PYTHON
}

write_prompteol_rows() { # NLI with the embedding prompt in place of the request for a paraphrase
  "${PYTHON:-.venv/bin/python}" - "$data/nli/train.jsonl.gz" "$out/prompteol.jsonl" <<'PYTHON'
import gzip, json, sys
from sempa_mlx.data.templates import PROMPTEOL

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as source, open(sys.argv[2], "w") as target:
    for row in map(json.loads, source):
        prompt, chosen, rejected = PROMPTEOL.render(row["anchor"]), row["entailment"], row["contradiction"]
        target.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
PYTHON
}

write_anchors() { # what `standardize` is fitted to
  gunzip -c "$data/nli/train.jsonl.gz" | sed -n 1,4608p > "$out/anchors.jsonl"
}

recipe() { # NAME: the options that make it what it is
  local prefer="--batch-size 32 --learning-rate $dpo_rate"
  local embed="--batch-size 64 --learning-rate $rate"
  local general="--set objective.kl_text=general"
  case $1 in
    sempa | sempa-prompteol) echo --set objective.loss=sigmoid $prefer ;;
    sempa-beta-*) echo --set objective.loss=sigmoid --beta "${1#sempa-beta-}" $prefer ;;
    sempa-held) echo --set objective.loss=sigmoid+2kl $general $prefer ;;
    sempa-held-*) echo --set "objective.loss=sigmoid+${1#sempa-held-}kl" $general $prefer ;;
    norm-held) echo --set objective.loss=sigmoid_norm+2kl --beta 5 $general $prefer ;;
    sempa-sft) echo --set objective.loss=sigmoid+0.2sft $prefer ;;
    simpo) echo --set objective.loss=simpo --beta 2 $prefer ;;
    paper) echo --set objective.loss=sigmoid --batch-size 256 --learning-rate 1e-4 ;;
    listwise) echo --set objective.loss=listwise $prefer ;;
    embedding) echo --set objective.loss=embedding $embed ;;
    held) echo --set objective.loss=embedding+2kl $general $embed ;;
    held-questions) echo --set objective.loss=embedding+2kl \
      --set "objective.kl_text=$out/questions.txt" $embed ;;
    held-wide) echo --set objective.loss=embedding+2kl $general --batch-size 128 \
      --learning-rate "$rate" ;;
    bridge) echo --set objective.loss=sigmoid+embedding $embed ;;
    bridge-*) echo --set "objective.loss=sigmoid+${1#bridge-}embedding" $embed ;;
    spod) echo --set objective.loss=sigmoid+0.3code --set "sparse.start=$out/base-coder.safetensors" \
      --set eval.dial=null $prefer ;;
    *) echo "unknown system: $1" >&2; return 1 ;;
  esac
}

train() { # NAME@SEED
  local run=$out/$1 name=${1%@*} seed=0 options rows_of=$data/nli/train.jsonl.gz
  [ "$name" = "$1" ] || seed=${1#*@}
  [ ! -f "$run/results.json" ] || return 0
  case $name in
    held-questions) write_questions ;;
    sempa-prompteol) write_prompteol_rows; rows_of=$out/prompteol.jsonl ;;
    spod)
      [ -f "$out/base-coder.safetensors" ] || "$sempa" sparse fit --model "$model" \
        --data "$data/nli/train.jsonl.gz" --out "$out/base-coder.safetensors"
      ;;
  esac
  options=$(recipe "$name")
  # shellcheck disable=SC2086
  "$sempa" train --config sempa --model "$model" --data "$rows_of" \
    --set data.limit="$rows" --seed "$seed" --set eval.data="$data/sts/STSB/dev.tsv" \
    --set eval.pairs="$pairs" --set eval.every="${EVERY:-16}" --set eval.patience=6 \
    $options ${OPTIONS:-} --adapter-path "$run" --force
}

wanted() { # PART
  [[ $parts == *" $1 "* ]]
}

once() { # NAME PART COMMAND...: writes the part's file unless it is there or not asked for
  wanted "$2" || return 0
  [ -f "$out/$1-$2.json" ] || "${@:3}" --out "$out/$1-$2.json"
}

measure() { # NAME OPTIONS...: everything about one system, at the strength that dev chose
  local name=$1
  shift
  once "$name" senteval "$sempa" eval sts "$@" --data "$data/sts_senteval" --details
  once "$name" raw "$sempa" eval sts "$@" --data "$data/sts" --protocol mteb
}

cost() { # NAME: what the adapter does to the generator along its dial
  local run=$out/$1
  # shellcheck disable=SC2046,SC2086
  once "$1" generation "$sempa" eval generation --text "$data/text/wikitext2-test.txt" \
    --max-tokens "$tokens" --adapter-path "$run" $(printf -- '--adapter-scale %s ' $scales)
  once "$1" tasks "$sempa" eval generation --tasks hellaswag,truthfulqa \
    --data "$data/lm" --limit "$questions" --adapter-path "$run" \
    --adapter-scale "$(dial "$run")"
  once "$1" geometry "$sempa" eval geometry --data "$data/sts_senteval" --no-base \
    --adapter-path "$run" --adapter-scale "$(dial "$run")"
  once "$1" tokens "$sempa" eval tokens --data "$data/sts_senteval" --show 0 --no-base \
    --adapter-path "$run" --adapter-scale "$(dial "$run")"
}

dial() { # RUN: the scale that dev chose
  sed -n 's/.*"adapter_scale": *\([0-9.]*\).*/\1/p' "$1/encoder.json"
}

for system in "${systems[@]}"; do
  echo "== $system" >&2
  case $system in
    prompteol | prompteol-icl | ke | metaeol) measure "$system" --model "$model" --method "$system" ;;
    standardize)
      write_anchors
      measure "$system" --model "$model" --method prompteol --post standardize \
        --post-fit "$out/anchors.jsonl"
      ;;
    *)
      if wanted train; then train "$system"; fi
      measure "$system" --no-base --adapter-path "$out/$system" \
        --adapter-scale "$(dial "$out/$system")"
      if wanted standardize; then
        write_anchors
        measure "$system+standardize" --no-base --adapter-path "$out/$system" --post standardize \
          --adapter-scale "$(dial "$out/$system")" --post-fit "$out/anchors.jsonl"
      fi
      cost "$system"
      ;;
  esac
done
