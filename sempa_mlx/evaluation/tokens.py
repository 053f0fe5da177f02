"""Key tokens: which words of the vocabulary an embedding lies closest to.

An embedding, as it leaves the model, goes through the model's own output head; the tokens that come
out on top are its aligned tokens. How many of them stand in the text itself is what Nie et al.
(ACL 2025, arXiv 2406.17378) measure: untuned states align with words like "the", tuned ones with
the words that carry the text.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.model.head import BLOCK_ROWS, head_logits
from sempa_mlx.model.prompts import tokenize_bare

TOP = 10  # K of Hit@K


@dataclass(frozen=True, slots=True)
class KeyTokens:
    """The tokens of some texts, and those that their embeddings align with.

    Attributes:
        texts: token ids of each text by itself, without control tokens, repeats included (T_i).
        aligned: vocabulary ids by falling logit, ties by id; of text i the first max(top, |T_i|),
            or the whole vocabulary if that is smaller (A_i).
        top: K of Hit@K.
    """

    texts: tuple[tuple[int, ...], ...]
    aligned: tuple[tuple[int, ...], ...]
    top: int


@dataclass(frozen=True, slots=True)
class TokenAlignment:
    """How far embeddings align with their texts' own tokens; shares in [0, 1], NaN without texts.

    Attributes:
        num_texts: texts measured; a text without tokens has nothing to align with.
        num_empty: texts without tokens, left out.
        hit: Hit@K: share of texts with a token of their own among the first K of A_i.
        lar: local alignment rate: mean over texts of |first |T_i| of A_i, in T_i| / |set of T_i|.
        gar: global alignment rate: of all tokens in any text, the share that is aligned with in one
            of its texts, among the first |T_i| of A_i. It measures diversity.
        lar_cut: LAR with the first min(K, |T_i|), as the authors' code computes it for want of
            columns; for comparison with their figures.
        gar_cut: GAR so cut.
    """

    num_texts: int
    num_empty: int
    hit: float
    lar: float
    gar: float
    lar_cut: float
    gar_cut: float


def find_key_tokens(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    top: int = TOP,
    on_progress: Callable[[int], None] | None = None,
) -> KeyTokens:
    """Project embeddings of texts, neither cut nor at unit length, through the output head.

    Args:
        encoder: its method and adapter as they are set.
        texts: any number.
        top: K of Hit@K, >= 1.
        on_progress: called with the number of texts embedded.

    Raises:
        UsageError: the encoder reads an inner layer, which the head cannot read.
    """
    if not encoder.reads_last_layer:
        what = f"`{encoder.settings.method}` reads layer {encoder.parameters.layer}, an inner one"
        raise UsageError(Problem(what, fix="a method that reads what the output head is made for"))
    settings = replace(encoder.settings, normalize=False, truncate_dim=None, post=None)
    states = Encoder(encoder.loaded, settings).encode(texts, on_progress=on_progress)
    tokens = tokenize_bare(texts, encoder.loaded.tokenizer)
    aligned = rank_tokens(encoder.loaded.model, states, [max(top, len(row)) for row in tokens])
    return KeyTokens(tokens, aligned, top)


def rank_tokens(
    model: nn.Module, states: np.ndarray, counts: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the `counts[i]` tokens of the highest logits for state i, best first, ties by id.

    Args:
        model: its output head turns states into logits, soft caps and tied weights as it has them.
        states: (n, dim) float32; `BLOCK_ROWS` of them meet the vocabulary at once.
        counts: how many tokens of each state, >= 1; all if there are fewer.

    Raises:
        ValueError: a state is not finite, so its tokens have no order.
    """
    ranked = []
    for start in range(0, len(states), BLOCK_ROWS):
        block = states[start : start + BLOCK_ROWS]
        if not np.isfinite(block).all():
            raise ValueError("an embedding holds NaN or infinity")
        logits = np.array(head_logits(model, mx.array(block)))
        block_counts = counts[start : start + BLOCK_ROWS]
        ranked += [_best(row, count) for row, count in zip(logits, block_counts, strict=True)]
    return tuple(ranked)


def _best(logits: np.ndarray, count: int) -> tuple[int, ...]:
    count = min(count, len(logits))
    last = np.partition(logits, len(logits) - count)[len(logits) - count]
    candidates = np.flatnonzero(logits >= last)  # in order of id, more than `count` if some tie
    order = np.argsort(-logits[candidates], kind="stable")[:count]
    return tuple(candidates[order].tolist())


def measure_alignment(
    found: KeyTokens, form: Callable[[int], Hashable] | None = None
) -> TokenAlignment:
    """Compute Hit@K, LAR and GAR, counting tokens of equal `form` as the same (None: by id)."""

    def forms(tokens: Sequence[int]) -> set[Hashable]:
        return set(tokens) if form is None else {form(token) for token in tokens}

    rows = [pair for pair in zip(found.texts, found.aligned, strict=True) if pair[0]]
    if not rows:
        return TokenAlignment(0, len(found.texts), *[math.nan] * 5)
    own = [forms(text) for text, _ in rows]

    def matches(depths: Sequence[int]) -> list[set[Hashable]]:
        parts = zip(own, rows, depths, strict=True)
        return [mine & forms(aligned[:depth]) for mine, (_, aligned), depth in parts]

    hits = matches([found.top] * len(rows))
    lar, gar = _rates(own, matches([len(text) for text, _ in rows]))
    lar_cut, gar_cut = _rates(own, matches([min(found.top, len(text)) for text, _ in rows]))
    return TokenAlignment(
        num_texts=len(rows),
        num_empty=len(found.texts) - len(rows),
        hit=sum(map(bool, hits)) / len(rows),
        lar=lar,
        gar=gar,
        lar_cut=lar_cut,
        gar_cut=gar_cut,
    )


def _rates(own: list[set[Hashable]], both: list[set[Hashable]]) -> tuple[float, float]:
    """Return the local and the global rate of tokens that are in `both` among a text's `own`."""
    local = math.fsum(len(part) / len(whole) for part, whole in zip(both, own, strict=True))
    return local / len(own), len(set().union(*both)) / len(set().union(*own))


def spell(tokenizer: TokenizerWrapper, token: int) -> str:
    """Return the text of one token, with the blank that it begins with; "" if it has none."""
    text = str(tokenizer.decode([token]))
    piece = tokenizer.convert_ids_to_tokens(token) or ""
    # A decoder of SentencePiece pieces drops the blank at the start of what it decodes.
    return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text


def fold(tokenizer: TokenizerWrapper, token: int) -> Hashable:
    """Return what a token shares with those of other case or with a blank before them.

    The prompt decides on both: after an opening quote the model says `Garlic` or `garlic`, where
    the text has ` garlic`. A token that is no whole character shares with none.
    """
    text = spell(tokenizer, token)
    return token if "\ufffd" in text or not text else text.strip().casefold() or text
