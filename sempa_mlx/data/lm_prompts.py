"""The prompts of generation benchmarks, as lm-evaluation-harness 0.4 builds them.

Matched to the letter, blanks included, so that figures can be compared: a few characters more or
less move an accuracy by points. Examples are separated by an empty line, and one blank stands
between a prompt and its continuation.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DELIMITER = " "  # between a prompt and what continues it
MMLU_SHOTS = 5
GSM8K_SHOTS = 8
LETTERS = ("A", "B", "C", "D")

_FOLDER = Path(__file__).parent / "prompts"


def clean_hellaswag(text: str) -> str:
    """Take out the marks of WikiHow (`[header]`, `[title]`, `[step]`) as the task `hellaswag` does.

    A blank may be left at the start, where a mark was.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def truthfulqa_prompt(question: str) -> str:
    """Put a question after six fixed pairs, as `truthfulqa_mc1` and `truthfulqa_mc2` do.

    The pairs are the prompt of TruthfulQA's authors (arXiv 2109.07958, appendix E).
    """
    return _asked("truthfulqa.txt", question)


def mmlu_prompt(
    subject: str, shots: Sequence[tuple[str, Sequence[str], int]], question: str, choices: list[str]
) -> str:
    """Put a question after solved ones of its subject, as the tasks `mmlu_*` do.

    Args:
        subject: as the files name it, with underscores.
        shots: (question, its four choices, index of the right one).
        question: the one to answer.
        choices: its four choices.
    """
    head = (
        "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}."
    )
    solved = [
        f"{_mmlu_question(asked, options)}{DELIMITER}{LETTERS[answer]}"
        for asked, options, answer in shots
    ]
    return "\n\n".join([head, *solved, _mmlu_question(question, choices)])


def _mmlu_question(question: str, choices: Sequence[str]) -> str:
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question.strip(), *options, "Answer:"])


def gsm8k_prompt(question: str) -> str:
    """Put a question after eight chains of thought, as `gsm8k_cot` does.

    The chains are those of arXiv 2201.11903, table 20.
    """
    return _asked("gsm8k.txt", question)


def _asked(examples: str, question: str) -> str:
    return f"{_examples(examples)}\n\nQ: {question}\nA:"


@cache
def _examples(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()
