"""The prompts around a sentence: paraphrase prompts to train on, embedding prompts to encode with.

A sentence is put between two fixed strings by concatenation, never by `str.format`, so braces,
quotes and template marks inside it are plain text.
"""

import hashlib
import json
from dataclasses import astuple, dataclass
from difflib import get_close_matches

from sempa_mlx.errors import Problem, UsageError

SYSTEM_PROMPT = "You are a helpful assistant"

# The quoted S stands for the anchor sentence. P1 is the one that SemPA trains with.
PARAPHRASE_TEMPLATES: dict[str, str] = {
    "P1": 'Keep the same meaning of this sentence: "S", while making some changes.',
    "P2": (
        'Generate a paraphrase of this sentence: "S" that preserves its meaning, '
        "while making some changes."
    ),
    "P3": 'Keep the main meaning of this sentence: "S", and rewrite it in a different way.',
    "P4": 'Generate a paraphrase of the sentence: "S".',
    "P5": (
        'Rewrite the sentence: "S" while preserving its main meaning, '
        "but the wording may be simplified or rephrased."
    ),
}

# Part of every fingerprint: raise it when `clean_sentence` or `render` changes what it returns.
TEMPLATE_VERSION = 1

_UNFINISHED_WITHOUT = (".", "?", '"', "'")


def paraphrase_prompt(template: str, sentence: str) -> str:
    """Return the paraphrase request of `template` (P1 to P5) for `sentence`, kept as it is.

    Neither blanks nor double quotes of the sentence are changed, as in SemPA's `trans_data.py`.

    Raises:
        UsageError: no template has that name.
    """
    text = PARAPHRASE_TEMPLATES.get(template)
    if text is None:
        close = get_close_matches(template.upper(), PARAPHRASE_TEMPLATES, n=1)
        known = ", ".join(PARAPHRASE_TEMPLATES)
        fix = f"did you mean {close[0]}? Known: {known}" if close else f"known: {known}"
        raise UsageError(Problem(f"unknown paraphrase template {template!r}", fix=fix))
    head, _, tail = text.partition('"S"')
    return f'{head}"' + sentence + f'"{tail}'


def clean_sentence(s: str) -> str:
    """Return `s` as PromptEOL's evaluation writes it between its quotes.

    Outer blanks go and runs of blanks become one; a full stop is added unless the text ends in
    `.`, `?`, `"` or `'`; double quotes become single; a final `?` becomes `.`, in that order.
    Text of blanks only gives "".
    """
    text = " ".join(s.split())
    if text and not text.endswith(_UNFINISHED_WITHOUT):
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text


@dataclass(frozen=True)
class EmbeddingTemplate:
    """What stands before and after a sentence when it is encoded."""

    name: str
    prefix: str
    suffix: str
    clean: bool

    def render(self, sentence: str) -> str:
        """Return the prompt for `sentence`, cleaned by `clean_sentence` if the template says so."""
        body = clean_sentence(sentence) if self.clean else sentence
        return self.prefix + body + self.suffix

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits that change with any field or with the template version."""
        content = json.dumps([TEMPLATE_VERSION, *astuple(self)])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


PROMPTEOL = EmbeddingTemplate("prompteol", 'This sentence : "', '" means in one word:"', clean=True)
RAW = EmbeddingTemplate("raw", "", "", clean=False)
EMBEDDING_TEMPLATES: dict[str, EmbeddingTemplate] = {
    template.name: template for template in (PROMPTEOL, RAW)
}
