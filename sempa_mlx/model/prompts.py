"""Text into token ids, with the model's own tokenizer.

User text is always encoded as text: a sentence that spells a control token such as `<|im_end|>`
never becomes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain

from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx.data.records import Message, PreferenceRecord
from sempa_mlx.data.templates import EmbeddingTemplate, clean_sentence
from sempa_mlx.errors import DataError, ModelError, Problem
from sempa_mlx.model.completions import TokenRow

PLAIN_ENDING = "\n"  # after a prompt, for models without a chat template
# A template is a program: beside jinja's own errors it raises those of Python's operators.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)


@dataclass(frozen=True, slots=True)
class TokenizedPreferences:
    """Token rows ready for scoring, the records they are of, and how many were too long."""

    rows: tuple[TokenRow, ...]
    records: tuple[PreferenceRecord, ...]
    num_too_long: int


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of embedding prompts in input order, and how many texts had to be cut."""

    rows: tuple[tuple[int, ...], ...]
    num_truncated: int


def _encode(
    tokenizer: TokenizerWrapper, texts: Sequence[str], *, as_text: bool, special: bool
) -> list[list[int]]:
    encoded = tokenizer._tokenizer(  # the wrapper is not callable
        list(texts),
        add_special_tokens=special,
        split_special_tokens=as_text,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def encode_one(
    tokenizer: TokenizerWrapper, text: str, *, as_text: bool, special: bool = False
) -> tuple[int, ...]:
    """Return the tokens of one text; names of control tokens stay text if `as_text`."""
    return tuple(_encode(tokenizer, [text], as_text=as_text, special=special)[0])


class ChatRenderer:
    """Renders preference records for one tokenizer: prompts, completions, end of turn."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        """Look at the tokenizer's chat template once."""
        self._tokenizer = tokenizer
        self._markers = _control_tokens(tokenizer)
        self.has_template = tokenizer.has_chat_template
        self._end_of_turn = self._find_end_of_turn()

    def row(self, record: PreferenceRecord) -> TokenRow:
        """Tokenise one record; each completion ends with the template's end of turn."""
        if isinstance(record.prompt, str):
            prompt = encode_one(self._tokenizer, record.prompt, as_text=True, special=True)
            ending: tuple[int, ...] = (self._tokenizer.eos_token_id,)
        else:
            prompt = self.prompt(record.prompt)
            ending = self._end_of_turn
        completions = _encode(self._tokenizer, record.candidates, as_text=True, special=False)
        return TokenRow(prompt, tuple((*ids, *ending) for ids in completions))

    def prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Tokenise a conversation up to where the model's turn begins.

        Raises:
            ModelError: the chat template refuses the conversation.
        """
        if not self.has_template:
            text = PLAIN_ENDING.join(message.content for message in messages) + PLAIN_ENDING
            return encode_one(self._tokenizer, text, as_text=True, special=True)
        text = "".join(message.content for message in messages)
        if not any(marker in text for marker in self._markers):
            rendered = self._render(messages, add_generation_prompt=True)
            return encode_one(self._tokenizer, rendered, as_text=False)
        return self._prompt_around(messages, _unused_character(text))

    def _prompt_around(self, messages: tuple[Message, ...], mask: str) -> tuple[int, ...]:
        """Tokenise markers inside contents apart, so that they stay text.

        The template sees numbers between two `mask` characters in their place: contents cannot be
        found again in what it returns, as it may trim them or spell the same text itself.
        """
        masked = []
        for message in messages:
            content = message.content
            for index, marker in enumerate(self._markers):
                content = content.replace(marker, f"{mask}{index}{mask}")
            masked.append(replace(message, content=content))
        rendered = self._render(tuple(masked), add_generation_prompt=True)
        ids: list[int] = []
        encode = cache(partial(encode_one, self._tokenizer))  # few texts, which may come often
        for place, part in enumerate(rendered.split(mask)):
            ids += encode(self._markers[int(part)] if place % 2 else part, as_text=bool(place % 2))
        return tuple(ids)

    def _render(self, messages: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
        try:
            return self._apply(messages, add_generation_prompt)
        except _TEMPLATE_ERRORS:
            # Some templates (Gemma) know no system role: its text then leads the first user turn.
            return self._apply_merged(messages, add_generation_prompt)

    def _apply_merged(self, messages: tuple[Message, ...], add_generation_prompt: bool) -> str:
        try:
            return self._apply(_merge_system(messages), add_generation_prompt)
        except _TEMPLATE_ERRORS as error:
            raise ModelError(f"the model's chat template refuses the prompt: {error}") from error

    def _apply(self, messages: tuple[Message, ...], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
            )
        )

    def _find_end_of_turn(self) -> tuple[int, ...]:
        """Return the tokens the template puts right after an answer, or end-of-sequence."""
        fallback = (self._tokenizer.eos_token_id,)
        if not self.has_template:
            return fallback
        question, answer = Message("user", "Q"), Message("assistant", "A")
        opened = self._render((question,), add_generation_prompt=True)
        closed = self._render((question, answer), add_generation_prompt=False)
        if not closed.startswith(opened + answer.content):
            return fallback
        ending = closed.removeprefix(opened + answer.content).strip()
        return encode_one(self._tokenizer, ending, as_text=False) or fallback


def _control_tokens(tokenizer: TokenizerWrapper) -> list[str]:
    """List every control token, also those without a role such as begin or end of sequence."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)} - {""})


_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def _unused_character(text: str) -> str:
    """Return a character that Unicode leaves to private use and that `text` does not hold.

    Raises:
        ModelError: it holds all 137,468 of them.
    """
    held = set(text)
    found = next((char for area in _PRIVATE for char in map(chr, area) if char not in held), None)
    if found is None:
        raise ModelError("a text holds every character of private use, so none can stand for it")
    return found


def _merge_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    first = replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}")
    return (first, *messages[2:])


def tokenize_preferences(
    records: Sequence[PreferenceRecord], tokenizer: TokenizerWrapper, max_tokens: int
) -> TokenizedPreferences:
    """Render and tokenise records; a row longer than `max_tokens` is left out and counted.

    The length of a row is its prompt plus its longest completion, end of turn included. Cutting a
    row would change what is preferred over what, so rows are never cut.
    """
    renderer = ChatRenderer(tokenizer)
    fitting = []
    for record in records:
        row = renderer.row(record)
        if len(row.prompt) + max(map(len, row.completions)) <= max_tokens:
            fitting.append((row, record))
    rows, kept = (tuple(each) for each in zip(*fitting, strict=True)) if fitting else ((), ())
    return TokenizedPreferences(rows, kept, num_too_long=len(records) - len(fitting))


def tokenize_prompts(prompts: Sequence[str], tokenizer: TokenizerWrapper) -> list[list[int]]:
    """Tokenise prompts as they are, with the tokenizer's own beginning of a sequence."""
    return _encode(tokenizer, prompts, as_text=True, special=True) if prompts else []


def tokenize_continuations(
    pairs: Sequence[tuple[str, Sequence[str]]], tokenizer: TokenizerWrapper
) -> list[TokenRow]:
    """Tokenise prompts and the continuations whose likelihood is asked for.

    Each continuation is encoded together with its prompt and cut where the prompt alone ends;
    blanks at the end of a prompt count for the continuation. This is what lm-evaluation-harness
    does (`_encode_pair`), but for names of control tokens, which stay text here.

    Args:
        pairs: (prompt, continuations) with any number of continuations; no prompt is blank.
        tokenizer: the model's.

    Raises:
        DataError: a continuation adds no token to its prompt.
    """
    return [_continued(prompt, continuations, tokenizer) for prompt, continuations in pairs]


def _continued(prompt: str, continuations: Sequence[str], tokenizer: TokenizerWrapper) -> TokenRow:
    texts = [prompt.rstrip(), *(prompt + continuation for continuation in continuations)]
    context, *wholes = _encode(tokenizer, texts, as_text=True, special=True)
    completions = tuple(tuple(whole[len(context) :]) for whole in wholes)
    if not all(completions):
        empty = continuations[completions.index(())]
        evidence = f"...{prompt[-40:]!r} + {empty[:40]!r}"
        raise DataError(Problem("the continuation adds no token to its prompt", evidence=evidence))
    return TokenRow(tuple(context), completions)


def tokenize_texts(
    texts: Sequence[str],
    template: EmbeddingTemplate,
    tokenizer: TokenizerWrapper,
    max_tokens: int,
) -> TokenizedTexts:
    """Put texts into an embedding template and tokenise them.

    A prompt longer than `max_tokens` loses the end of its sentence, never of the template. An empty
    prompt becomes the end-of-sequence token alone, so that every text has a vector. A placeholder
    is an end-of-sequence token, which stands in for a state that is put there later.
    """
    rows = _rows([template.parts(text) for text in texts], template, tokenizer)
    long = [index for index, row in enumerate(rows) if len(row) > max_tokens]
    for index in long:
        rows[index] = _cut(texts[index], template, tokenizer, max_tokens)
    empty = (tokenizer.eos_token_id,)
    return TokenizedTexts(tuple(tuple(row) or empty for row in rows), num_truncated=len(long))


def tokenize_bare(texts: Sequence[str], tokenizer: TokenizerWrapper) -> tuple[tuple[int, ...], ...]:
    """Tokenise texts by themselves: no template, no control tokens; an empty text has none."""
    rows = _encode(tokenizer, texts, as_text=True, special=False) if texts else []
    return tuple(map(tuple, rows))


def _rows(
    prompts: Sequence[tuple[str, ...]], template: EmbeddingTemplate, tokenizer: TokenizerWrapper
) -> list[list[int]]:
    """Tokenise prompts given in parts; each part is tokenised apart from the others."""
    parts = list(zip(*prompts, strict=True))
    if len(parts) == 1:  # the tokenizer's own special tokens stand where it puts them
        return _encode(tokenizer, parts[0], as_text=True, special=True)
    opening = opening_tokens(tokenizer)
    encoded = [_encode(tokenizer, part, as_text=True, special=False) for part in parts]
    if template.head and encoded:
        encoded.insert(1, [[tokenizer.eos_token_id]] * len(prompts))
    return [[*opening, *chain.from_iterable(row)] for row in zip(*encoded, strict=True)]


def opening_tokens(tokenizer: TokenizerWrapper) -> tuple[int, ...]:
    """Return what the tokenizer puts in front of a text, such as begin of sequence."""
    bare, whole = (
        encode_one(tokenizer, "a", as_text=True, special=special) for special in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    start = next((start for start in starts if whole[start : start + len(bare)] == bare), 0)
    return whole[:start]


def _cut(
    text: str, template: EmbeddingTemplate, tokenizer: TokenizerWrapper, max_tokens: int
) -> list[int]:
    """Shorten the sentence, token by token from its end, until its prompt fits."""
    # Cleaned first: blanks that cleaning takes away must not crowd out words.
    body = clean_sentence(text) if template.clean else text
    sentence = encode_one(tokenizer, body, as_text=True)
    copies = 2 if template.twice else 1
    keep = min(len(sentence), max_tokens)
    while True:
        shorter = template.parts(tokenizer.decode(sentence[:keep]))
        (row,) = _rows([shorter], template, tokenizer)
        if len(row) <= max_tokens or keep == 0:
            return row
        keep -= min(keep, -(-(len(row) - max_tokens) // copies))
