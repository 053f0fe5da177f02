"""The prompts around a sentence: paraphrase prompts to train on, embedding prompts to encode with.

A sentence is put between two fixed strings by concatenation, never by `str.format`, so braces,
quotes and template marks inside it are plain text.
"""

import hashlib
import json
from dataclasses import dataclass
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
    """What stands around a sentence when it is encoded.

    `head`, if there is one, stands before everything else, with a placeholder token between it and
    the prefix. With `twice` the sentence comes a second time, after the suffix.
    """

    name: str
    prefix: str
    suffix: str
    clean: bool
    head: str = ""
    twice: bool = False

    def render(self, sentence: str) -> str:
        """Return the prompt for `sentence`, cleaned by `clean_sentence` if the template says so."""
        return "".join(self.parts(sentence))

    def parts(self, sentence: str) -> tuple[str, ...]:
        """Return the prompt for `sentence` in the parts that are tokenised apart.

        Most templates are one part. With a head it is a part of its own; with `twice` the parts are
        prefix, sentence, suffix, sentence.
        """
        body = clean_sentence(sentence) if self.clean else sentence
        if self.twice:
            return self.prefix, body, self.suffix, body
        whole = self.prefix + body + self.suffix
        return (self.head, whole) if self.head else (whole,)

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits that change with any field or with the template version."""
        extra = [self.head, self.twice] if self.head or self.twice else []
        plain = [self.name, self.prefix, self.suffix, self.clean]
        content = json.dumps([TEMPLATE_VERSION, *plain, *extra])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def _one_word(name: str, before: str, after: str = "means", head: str = "") -> EmbeddingTemplate:
    """Return a prompt that asks for a quoted, cleaned sentence in one word."""
    return EmbeddingTemplate(name, f'{before}"', f'" {after} in one word:"', clean=True, head=head)


RAW = EmbeddingTemplate("raw", "", "", clean=False)
PROMPTEOL = _one_word("prompteol", "This sentence : ")
# The demonstration that PromptEOL's authors found best for OPT-2.7B (arXiv 2307.16645).
PROMPTEOL_ICL = _one_word(
    "prompteol-icl",
    'This sentence : "A jockey riding a horse." means in one word:"Equestrian".This sentence : ',
)
# Pretended CoT and Knowledge Enhancement, arXiv 2404.03921.
PRETCOT = _one_word("pretcot", "After thinking step by step , this sentence : ")
KE = _one_word(
    "ke",
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. "
    "With this in mind , this sentence : ",
)
# Echo embeddings without training, arXiv 2402.15449.
ECHO = EmbeddingTemplate(
    "echo", "Rewrite the sentence: ", ", rewritten sentence: ", clean=False, twice=True
)
# Contrastive Prompting's auxiliary prompt, arXiv 2505.12831.
IRRELEVANT = _one_word("irrelevant", "The irrelevant information of this sentence : ")
# Token Prepending, arXiv 2412.11556: the placeholder stands before the quote.
PREPENDED = _one_word("prepended", " ", head="This sentence : ")

# The eight tasks of MetaEOL (arXiv 2402.18458) in words of our own: topic, opinion or fact, rating,
# emotion, equivalence of sentences, synonyms in context, key fact, entities and relations. The
# paper's prompts are other texts, so scores are near its own at best.
METAEOL = tuple(
    _one_word(f"metaeol-{name}", f"{task} {transition}, this sentence : ", after)
    for name, task, transition, after in (
        (
            "topic",
            "Texts are sorted by broad topic, such as science, health, sports, business or art.",
            "For this purpose",
            "belongs to the topic",
        ),
        (
            "opinion",
            "A reader has to tell statements of fact from statements of opinion.",
            "For this purpose",
            "is a statement of the kind",
        ),
        (
            "rating",
            "Customer reviews are rated from very bad to very good by what they say.",
            "For this purpose",
            "shows a rating",
        ),
        (
            "emotion",
            "Diary entries are sorted by their strongest emotion, such as joy, anger or fear.",
            "For this purpose",
            "expresses the emotion",
        ),
        (
            "equivalence",
            "Two sentences are compared to find out whether they mean the same.",
            "To make this easy",
            "means",
        ),
        (
            "synonym",
            "A phrase of a sentence is replaced by another one that means the same there.",
            "To make this easy",
            "means",
        ),
        (
            "fact",
            "The one fact that matters most is picked from a news report.",
            "For this purpose",
            "reports the key fact",
        ),
        (
            "entity",
            "The main things that a report is about, and how they act on each other, are listed.",
            "For this purpose",
            "is about the thing or relation",
        ),
    )
)
EMBEDDING_TEMPLATES: dict[str, EmbeddingTemplate] = {
    template.name: template
    for template in (
        *(PROMPTEOL, RAW, PROMPTEOL_ICL, PRETCOT, KE, ECHO, IRRELEVANT, PREPENDED),
        *METAEOL,
    )
}
