"""The terms of a run's loss, made from its settings."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from sempa_mlx import runtime
from sempa_mlx.config import SempaConfig
from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.model.checkpointed import saving_memory
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import final_hidden
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import TokenizedPreferences, encode_one
from sempa_mlx.model.scoring import Scorer
from sempa_mlx.training.contribution import Term
from sempa_mlx.training.kl_term import completion_kl, text_kl
from sempa_mlx.training.preference_term import PreferenceTerm
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.reference_store import ReferenceStore, default_folder, store_path
from sempa_mlx.training.sentence_losses import (
    Coder,
    contrastive_loss,
    sparse_loss,
    uniformity_loss,
)
from sempa_mlx.training.sentence_term import SentenceRow, SentenceTerm, WeightedLoss
from sempa_mlx.training.terms import Objective
from sempa_mlx.training.trainer import micro_batch_tokens


def preference_term(
    config: SempaConfig, loaded: LoadedModel, rows: Sequence[TokenRow], scorer: Scorer
) -> PreferenceTerm:
    """Return the term over completions, with its reference."""
    online = config.train.reference == "online"
    store = None
    if not online:
        candidates = len(rows[0].completions)
        path = store_path(
            default_folder(),
            fingerprint=f"{loaded.fingerprint}-{loaded.setup}",
            dtype=runtime.dtype_name(loaded.dtype),
            device=runtime.machine().device,
            candidates=candidates,
        )
        store = ReferenceStore(path, candidates)
    reference = Reference(loaded.model, scorer, rows, store=store, online=online)
    tokens = micro_batch_tokens(config.train)
    return PreferenceTerm(loaded.model, rows, scorer, reference, config.objective, tokens)


def training_terms(  # noqa: PLR0913 - what terms are made of
    config: SempaConfig,
    loaded: LoadedModel,
    preferences: TokenizedPreferences,
    scorer: Scorer,
    encoder: Encoder,
    kl_text: str,
    coder: Coder | None = None,
) -> dict[str, Term]:
    """Return the terms of the loss by name; without `kl_text` the completions are held.

    Those over embeddings are one, `sentences`; `coder` is what its part `code` trains.
    """
    terms: dict[str, Term] = {}
    if Objective(config.objective).is_used:
        terms["preference"] = preference_term(config, loaded, preferences.rows, scorer)
    losses = sentence_losses(config, coder)
    if losses:
        sentences = sentence_rows(preferences.records, encoder)
        embed: Callable[[Any], mx.array] = encoder.pooled
        if config.train.grad_checkpoint:
            embed = saving_memory(loaded.model, embed)
        terms["sentences"] = SentenceTerm(
            loaded.model,
            sentences,
            embed,
            encoder.passes,
            losses,
            micro_batch_tokens(config.train),
        )
        encoder.pooled(sentences[0].candidates)  # looks at the model before gradients are taken
    if "kl" in config.objective.terms:
        terms["kl"] = _kl_term(config, loaded, preferences.rows, scorer, kl_text)
    return terms


def reads_completions(config: SempaConfig) -> bool:
    """Tell whether any term scores the candidates as completions of the prompt."""
    objective = config.objective
    return Objective(objective).is_used or ("kl" in objective.terms and objective.kl_text is None)


def describe_terms(config: SempaConfig, scorer: Scorer, method: str) -> dict[str, str]:
    """Return what the header of a run says of its prompts and its loss."""
    objective = config.objective
    prompts, loss = [], [objective.loss]
    if Objective(objective).is_used:
        loss.append(f"beta {objective.beta:g}")
    if reads_completions(config):
        prompts.append(f"{config.data.template} in the chat template to train")
        loss.append(f"{scorer.path} scoring, {scorer.shared} shared prompt tokens")
    prompts.append(f"{method} to embed")
    return {"prompts": ", ".join(prompts), "objective": ", ".join(loss)}


def sentence_losses(config: SempaConfig, coder: Coder | None) -> dict[str, WeightedLoss]:
    """Return the losses over embeddings by name."""
    found = {}
    for name, weight in config.objective.terms.items():
        if name == "embedding":
            settings = config.objective
            found[name] = WeightedLoss(weight, contrastive_loss(settings), settings.adjusted)
        elif name == "uniformity":
            found[name] = WeightedLoss(weight, uniformity_loss)
        elif name == "code":
            assert coder is not None, "the term has one to start from"
            adjusted = bool(config.sparse.preference and config.sparse.adjusted)
            found[name] = WeightedLoss(weight, sparse_loss(config.sparse, coder), adjusted)
    return found


def _kl_term(
    config: SempaConfig,
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    scorer: Scorer,
    text: str,
) -> Term:
    weight, batch_tokens = config.objective.terms["kl"], micro_batch_tokens(config.train)
    if not text:
        return completion_kl(loaded.model, weight, rows, scorer, batch_tokens)
    tokens = encode_one(loaded.tokenizer, text, as_text=True, special=True)
    read: Callable[[Any], mx.array] = partial(final_hidden, loaded.model)
    if config.train.grad_checkpoint:
        read = saving_memory(loaded.model, read)
    return text_kl(loaded.model, weight, tokens, config.objective.kl_tokens, batch_tokens, read)


def sentence_rows(records: Sequence[PreferenceRecord], encoder: Encoder) -> list[SentenceRow]:
    """Put anchors and candidates into the encoder's own template."""
    texts = [text for record in records for text in (record.anchor, *record.candidates)]
    tokens = iter(encoder.tokenize(texts))
    return [
        SentenceRow(next(tokens), tuple(next(tokens) for _ in record.candidates))
        for record in records
    ]
