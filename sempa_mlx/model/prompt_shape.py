"""Where things stand in the token rows of an embedding template."""

from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx.data.templates import EmbeddingTemplate
from sempa_mlx.model.prompts import encode_one, opening_tokens


@dataclass(frozen=True, slots=True)
class PromptShape:
    """Where things stand in the token rows of a template, whatever the sentence.

    `placeholder` is the index of the placeholder token, `frame` the number of tokens around the two
    copies of a sentence; None where a template has no such thing.
    """

    placeholder: int | None = None
    frame: int | None = None

    def second_copy(self, length: int) -> int:
        """Return the first token of the second copy in a row; the last one if a copy is empty."""
        copy = (length - (self.frame or 0)) // 2
        return length - max(copy, 1)


def prompt_shape(template: EmbeddingTemplate, tokenizer: TokenizerWrapper) -> PromptShape:
    """Find where things stand in what `tokenize_texts` makes of this template."""
    before = template.head if template.head else template.prefix
    opening = len(opening_tokens(tokenizer)) + len(encode_one(tokenizer, before, as_text=True))
    if template.head:
        return PromptShape(placeholder=opening)
    if template.twice:
        between = len(encode_one(tokenizer, template.suffix, as_text=True))
        return PromptShape(frame=opening + between)
    return PromptShape()
