"""The harness's own tasks on local files: its prompts, metrics and filters, without the Hub."""

import json
from pathlib import Path

import lm_eval.tasks
import yaml

from sempa_mlx.data.lm_rows import benchmark_rows
from sempa_mlx.data.lm_tasks import FILES
from sempa_mlx.data.readers import Faults

TASKS = Path(lm_eval.tasks.__file__).parent
# HellaSwag's own `process_docs`, but for the activity label that the rows lack.
HELLASWAG = """
from lm_eval.tasks.hellaswag.utils import preprocess

def process_docs(dataset):
    return dataset.map(lambda row: {
        "query": preprocess(row["ctx"]),
        "choices": [preprocess(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    })
"""


def local_tasks(data: Path, folder: Path, *, subjects=(), limit=None) -> Path:
    """Write task files over the benchmark files of `data`; return their folder.

    They are called local_hellaswag, local_truthfulqa_mc1 and _mc2, local_gsm8k, and local_SUBJECT
    for each subject of MMLU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "local_utils.py").write_text(HELLASWAG)
    rows = {name: read(data, FILES[name]) for name in FILES}
    truthfulqa = [
        {"question": row["question"]}
        | {
            key: {"choices": list(row[key]), "labels": list(row[key].values())}
            for key in ("mc1_targets", "mc2_targets")
        }
        for row in rows["truthfulqa"]
    ]
    write(
        folder, "hellaswag", "hellaswag/hellaswag.yaml", {"validation": rows["hellaswag"][:limit]}
    )
    for kind in ("mc1", "mc2"):
        name = f"truthfulqa_{kind}"
        write(folder, name, f"truthfulqa/{name}.yaml", {"validation": truthfulqa[:limit]})
    write(folder, "gsm8k", "gsm8k/gsm8k-cot.yaml", {"test": rows["gsm8k"][:limit]})
    dev = read(data, ("mmlu_dev.jsonl",))
    for subject in subjects:
        splits = {
            "test": [row for row in rows["mmlu"] if row["subject"] == subject][:limit],
            "dev": [row for row in dev if row["subject"] == subject],
        }
        write(folder, subject, f"mmlu/default/mmlu_{subject}.yaml", splits)
    write_group(folder, subjects)
    return folder


def read(data, names):
    faults = Faults()
    rows = [fields._values for fields in benchmark_rows(data, names, faults)]
    faults.raise_if_any()
    return rows


def write(folder, name, original, splits):
    files = {}
    for split, rows in splits.items():
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    settings = {
        "include": str(TASKS / original),
        "task": f"local_{name}",
        "task_alias": f"local_{name}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    text = yaml.safe_dump(settings)
    if name == "hellaswag":
        text += "training_split: null\nprocess_docs: !function local_utils.process_docs\n"
    (folder / f"{name}.yaml").write_text(text)


def write_group(folder, subjects):
    settings = {
        "group": "local_mmlu",
        "task": [f"local_{subject}" for subject in subjects],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1},
    }
    if subjects:
        (folder / "group.yaml").write_text(yaml.safe_dump(settings))
