"""The sparse coder of a run: fitted to the adapter that was kept, once training is over."""

from collections.abc import Callable

from sempa_mlx.data.rankings import RankedSentences, ranked_sentences
from sempa_mlx.encoder.coder_file import CODER_FILE, write_coder
from sempa_mlx.encoder.coding import FittedCoder, fit_coder_after
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.vector_cache import default_folder
from sempa_mlx.run.training_run import TrainingRun


def run_sentences(run: TrainingRun) -> RankedSentences:
    """Return the sentences of the run's training rows that its coder is fitted to."""
    return ranked_sentences(run.data.records, run.config.sparse.sentences)


def fit_run_coder(
    run: TrainingRun,
    sentences: RankedSentences,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> FittedCoder:
    """Fit the coder that the settings name to the kept adapter, at the kept scale; write it.

    It stands beside the adapter as `coder.safetensors`; the adapter stays as it is. One process of
    a world does it.

    Raises:
        DataError: there are too few sentences, or an embedding holds NaN or infinity.
        ResourceError: it cannot be written.
    """
    run.loaded.model.load_weights(list(run.best_weights.items()), strict=False)
    encoder = Encoder(run.loaded, run.encoder.with_scale(run.best_scale).settings)
    fitted = fit_coder_after(
        encoder,
        sentences,
        run.config.sparse,
        folder=default_folder(),
        seed=run.config.train.seed,
        on_progress=on_progress,
        on_epoch=on_epoch,
    )
    write_coder(run.folder / CODER_FILE, fitted.coder, fitted.examples)
    return fitted
