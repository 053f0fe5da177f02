"""Worked answers, such as GSM8K's: generate, take the number out, compare. No mlx here.

The readings are the filters of lm-evaluation-harness's task `gsm8k_cot`: `strict-match` takes the
number after "The answer is", `flexible-extract` the last number of all.
"""

import re

MAX_TOKENS = 256
STOPS = ("Q:", "</s>", "<|im_end|>")

_NONE = "[invalid]"
_STRICT = re.compile(r"The answer is (-?[0-9.,]+).")  # the last `.` is any character
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = re.compile(r",|\$")


def strict_number(text: str) -> str:
    """Return the first number after "The answer is" that something follows."""
    found = _STRICT.search(text)
    return found[1].strip() if found else _NONE


def flexible_number(text: str) -> str:
    """Return the last number of a text."""
    found = _NUMBER.findall(text)
    return str(found[-1]).strip() if found else _NONE


def same_number(found: str, truth: str) -> bool:
    """Compare as texts, without commas, dollar signs and a full stop at the end."""
    return _bare(found) == _bare(truth)


def _bare(number: str) -> str:
    """Take out what `exact_match` ignores, in the order of the task."""
    text = re.sub(r"(?s).*#### ", "", _IGNORED.sub("", number))
    return re.sub(r"\.$", "", text).lower()


READINGS = {"strict": strict_number, "flexible": flexible_number}
