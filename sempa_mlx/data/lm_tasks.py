"""Generation benchmarks from local files: multiple choice by likelihood, and worked answers.

A task is looked for below a folder under these names, `.gz` allowed:

| task | file | fields |
| --- | --- | --- |
| hellaswag | hellaswag_val.jsonl, hellaswag.jsonl | activity_label, ctx_a, ctx_b, endings, label |
| | or hellaswag_sample.jsonl | or: ctx, endings, label |
| truthfulqa | truthfulqa_mc_task.json, mc_task.json | question, mc1_targets, mc2_targets |
| mmlu | mmlu_test.jsonl and mmlu_dev.jsonl | subject, question, choices, answer |
| gsm8k | gsm8k_test.jsonl, test.jsonl | question, answer |

Rows of HellaSwag that hold `ctx` alone are prompted without their activity label; such figures are
not the published ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sempa_mlx.data.lm_prompts import (
    GSM8K_SHOTS,
    LETTERS,
    MMLU_SHOTS,
    clean_hellaswag,
    gsm8k_prompt,
    mmlu_prompt,
    truthfulqa_prompt,
)
from sempa_mlx.data.lm_rows import benchmark_rows
from sempa_mlx.data.readers import Faults
from sempa_mlx.errors import Problem, UsageError

FILES = {
    "hellaswag": ("hellaswag_val.jsonl", "hellaswag.jsonl", "hellaswag_sample.jsonl"),
    "truthfulqa": ("truthfulqa_mc_task.json", "mc_task.json"),
    "mmlu": ("mmlu_test.jsonl",),
    "gsm8k": ("gsm8k_test.jsonl", "test.jsonl"),
}


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A prompt and what may continue it; the prompts of a `section` begin alike."""

    prompt: str
    choices: tuple[str, ...]
    is_true: tuple[bool, ...]
    section: str


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """Questions whose answers are ranked by likelihood, and the metrics that count."""

    name: str
    shots: int
    metrics: tuple[str, ...]
    questions: tuple[ChoiceQuestion, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class WorkedQuestion:
    """A prompt that asks for a worked answer, and the number at its end."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class WorkedTask:
    """Questions that are answered by generating."""

    name: str
    shots: int
    questions: tuple[WorkedQuestion, ...]
    note: str = ""


LmTask = ChoiceTask | WorkedTask
_Asked = tuple[str, list[str], int]  # question, choices, index of the right one


def load_lm_tasks(root: Path, names: Sequence[str], limit: int | None = None) -> tuple[LmTask, ...]:
    """Read the named tasks below `root`, in the order named.

    `truthfulqa` gives two: `truthfulqa_mc1` and `truthfulqa_mc2`.

    Args:
        root: the folder.
        names: some of `FILES`.
        limit: take the first n questions of a task, of MMLU the first n of every subject, as
            lm-evaluation-harness's `--limit` does. All are read and checked all the same.

    Raises:
        UsageError: unknown names.
        DataError: a file is missing or has faults; all of them are told.
    """
    unknown = [name for name in names if name not in FILES]
    if unknown:
        raise UsageError([_unknown(name) for name in unknown])
    faults = Faults()
    tasks = [task for name in names for task in _READERS[name](root, limit, faults)]
    faults.raise_if_any()
    return tuple(tasks)


def _unknown(name: str) -> Problem:
    close = get_close_matches(name, FILES, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return Problem(f"unknown task {name!r}", fix=f"{hint}Known: {', '.join(FILES)}")


def _hellaswag(root: Path, limit: int | None, faults: Faults) -> Iterator[ChoiceTask]:
    questions, note = [], ""
    for row in benchmark_rows(root, FILES["hellaswag"], faults):
        endings = row.texts("endings")
        truth = row.index("label", len(endings))
        if "activity_label" in row:
            second = row.text("ctx_b", may_be_empty=True).capitalize()
            prompt = f"{row.text('activity_label')}: {row.text('ctx_a')} {second}"
        else:
            note = "hellaswag: no activity labels in the file"
            prompt = row.text("ctx")
        truths = tuple(index == truth for index in range(len(endings)))
        choices = tuple(clean_hellaswag(ending) for ending in endings)
        questions.append(ChoiceQuestion(clean_hellaswag(prompt), choices, truths, "hellaswag"))
    yield ChoiceTask("hellaswag", 0, ("acc", "acc_norm"), tuple(questions[:limit]), note)


def _truthfulqa(root: Path, limit: int | None, faults: Faults) -> Iterator[ChoiceTask]:
    questions: dict[str, list[ChoiceQuestion]] = {"mc1": [], "mc2": []}
    for row in benchmark_rows(root, FILES["truthfulqa"], faults):
        prompt = truthfulqa_prompt(row.text("question"))
        for kind, found in questions.items():
            labels = row.labels(f"{kind}_targets")
            found.append(
                ChoiceQuestion(prompt, tuple(labels), tuple(labels.values()), "truthfulqa")
            )
    yield ChoiceTask("truthfulqa_mc1", 0, ("acc",), tuple(questions["mc1"][:limit]))
    yield ChoiceTask("truthfulqa_mc2", 0, ("true_mass",), tuple(questions["mc2"][:limit]))


def _mmlu(root: Path, limit: int | None, faults: Faults) -> Iterator[ChoiceTask]:
    solved = _mmlu_rows(root, ("mmlu_dev.jsonl",), faults)
    questions = []
    for subject, asked in _mmlu_rows(root, FILES["mmlu"], faults).items():
        shots = solved.get(subject, [])[:MMLU_SHOTS]
        if len(shots) < MMLU_SHOTS:
            what = f"{len(shots)} examples of {subject} instead of {MMLU_SHOTS}"
            faults.add(Problem(what, str(root / "mmlu_dev.jsonl")))
        for question, choices, answer in asked[:limit]:
            prompt = mmlu_prompt(subject, shots, question, choices)
            truths = tuple(index == answer for index in range(len(LETTERS)))
            questions.append(ChoiceQuestion(prompt, LETTERS, truths, subject))
    yield ChoiceTask("mmlu", MMLU_SHOTS, ("acc",), tuple(questions))


def _mmlu_rows(root: Path, names: Sequence[str], faults: Faults) -> dict[str, list[_Asked]]:
    """Read questions by subject, in order of appearance."""
    found: dict[str, list[_Asked]] = {}
    for row in benchmark_rows(root, names, faults):
        choices, answer = row.texts("choices", len(LETTERS)), row.index("answer", len(LETTERS))
        found.setdefault(row.text("subject"), []).append((row.text("question"), choices, answer))
    return found


def _gsm8k(root: Path, limit: int | None, faults: Faults) -> Iterator[WorkedTask]:
    questions = []
    for row in benchmark_rows(root, FILES["gsm8k"], faults):
        answer = row.text("answer").rpartition("####")[2].strip()
        questions.append(WorkedQuestion(gsm8k_prompt(row.text("question")), answer))
    yield WorkedTask("gsm8k", GSM8K_SHOTS, tuple(questions[:limit]))


_READERS: dict[str, Callable[[Path, int | None, Faults], Iterator[LmTask]]] = {
    "hellaswag": _hellaswag,
    "truthfulqa": _truthfulqa,
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
}
