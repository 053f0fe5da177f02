"""Make a run ready: load the model, tokenise, attach the adapter, choose how to score."""

import time
from collections.abc import Sequence

import mlx.core as mx

from sempa_mlx import runtime
from sempa_mlx.config import SempaConfig
from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import attach
from sempa_mlx.model.prompts import TokenizedPreferences, tokenize_preferences
from sempa_mlx.model.scoring import Scorer, choose_scoring
from sempa_mlx.run.identity import run_identity
from sempa_mlx.run.inputs import RunData
from sempa_mlx.run.joint_coder import attach_coder
from sempa_mlx.run.selection import DevEvaluation
from sempa_mlx.run.terms import preference_term, training_terms
from sempa_mlx.run.training_run import TrainingRun
from sempa_mlx.training.memory import check_peak
from sempa_mlx.training.trainer import EXACT, Trainer
from sempa_mlx.world import World

ROUNDED = 0.1  # rewards of half-precision models differ by this between groupings of rows


def prepare_run(config: SempaConfig, data: RunData, world: World | None = None) -> TrainingRun:
    """Load the model, tokenise, attach the adapter, choose the scoring path.

    Raises:
        ModelError: the model cannot be loaded, or a coder to start from does not fit it.
        DataError: no row fits `model.max_tokens`.
        ResourceError: a step would take more memory than there is.
    """
    started = time.perf_counter()
    world = world or World()
    loaded = load_model(config.model.name, revision=config.model.revision, dtype=config.model.dtype)
    runtime.limit_cache()  # some arrays of a step are larger than what the C library keeps
    tokenized = tokenize_rows(config, data.records, loaded, str(data.train.path))
    attach(loaded.model, config.lora, config.train.seed)
    scorer = choose_scoring(
        loaded.model,
        tokenized.rows,
        loaded.dtype,
        config.train.scoring,
        checkpoint=config.train.grad_checkpoint,
    )
    encoder = Encoder(loaded, EncoderSettings(max_tokens=config.model.max_tokens), world=world)
    coder = attach_coder(config, encoder)
    trainer = Trainer(
        loaded.model,
        training_terms(config, loaded, tokenized, scorer, encoder, data.kl_text, coder),
        [scorer.own_tokens(row) for row in tokenized.rows],
        config.train,
        plus_ratio=config.lora.plus_ratio,
        tolerance=EXACT if loaded.dtype == mx.float32 else ROUNDED,
        world=world,
    )
    expected_peak_gb = trainer.estimate_peak_gb()
    remark = check_peak(expected_peak_gb)
    return TrainingRun(
        config,
        data,
        loaded,
        encoder,
        trainer,
        scorer,
        _evaluation(config, data, loaded, encoder),
        run_identity(config, loaded, tokenized.rows, data, coder.digest if coder else ""),
        [record.line for record in tokenized.records],
        tokenized.num_too_long,
        expected_peak_gb,
        remark,
        world,
        coder,
        started,
    )


def tokenize_rows(
    config: SempaConfig, records: Sequence[PreferenceRecord], loaded: LoadedModel, place: str
) -> TokenizedPreferences:
    """Tokenise the rows that fit; `place` is where they are from.

    Raises:
        DataError: none fits.
    """
    tokenized = tokenize_preferences(records, loaded.tokenizer, config.model.max_tokens)
    if not tokenized.rows:
        raise DataError(
            Problem(
                f"all {len(records)} rows are longer than {config.model.max_tokens} tokens",
                place=place,
                fix="raise model.max_tokens",
            ),
            state="nothing was trained",
        )
    return tokenized


def _evaluation(
    config: SempaConfig, data: RunData, loaded: LoadedModel, encoder: Encoder
) -> DevEvaluation:
    """Return what scores the model; validation rows share prompts of their own."""
    validation = None
    if data.dev_records:
        rows = tokenize_rows(config, data.dev_records, loaded, str(config.data.dev)).rows
        scorer: Scorer = choose_scoring(loaded.model, rows, loaded.dtype, config.train.scoring)
        validation = preference_term(config, loaded, rows, scorer)
    return DevEvaluation(encoder, data.dev_task, config.eval, validation)
