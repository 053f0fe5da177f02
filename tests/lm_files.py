"""Small benchmark files, in the forms that `sempa_mlx.data.lm_tasks` reads."""

import gzip
import json

SUBJECTS = ("abstract_algebra", "high_school_physics")


def write_jsonl(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def hellaswag_rows(count=6):
    return [
        {
            "ctx": f"[header] How to feed {number} dogs [title] Buy food. [step] A man is running.",
            "endings": [f"He eats {number}.", "[title] A woman reads a book.", "Run!", "The cat"],
            "label": number % 4,
        }
        for number in range(count)
    ]


def truthfulqa_rows(count=6):
    return [
        {
            "question": f"Are {number} dogs on the grass?",
            "mc1_targets": {f"They are {number}.": 1, "A woman is.": 0}
            | {f"No {other}": 0 for other in range(number % 3)},
            "mc2_targets": {f"They are {number}.": 1, "It is said.": 1, "A woman is.": 0},
        }
        for number in range(count)
    ]


def mmlu_rows(count, offset=0):
    return [
        {
            "subject": subject,
            "question": f" What is {number} + {offset}? ",
            "choices": [str(number + offset + place) for place in range(4)],
            "answer": (number + offset) % 4,
        }
        for subject in SUBJECTS
        for number in range(count)
    ]


def gsm8k_rows(count=3):
    return [
        {"question": f"A man has {number} books?", "answer": f"He has {number}.\n#### 1,00{number}"}
        for number in range(count)
    ]


def write_lm_files(folder, count=6):
    """Write all four benchmarks; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "hellaswag_sample.jsonl.gz", hellaswag_rows(count))
    (folder / "truthfulqa_mc_task.json").write_text(json.dumps(truthfulqa_rows(count)))
    write_jsonl(folder / "mmlu_test.jsonl", mmlu_rows(count))
    write_jsonl(folder / "mmlu_dev.jsonl", mmlu_rows(6, offset=10))
    write_jsonl(folder / "gsm8k_test.jsonl", gsm8k_rows(min(count, 3)))
    return folder
