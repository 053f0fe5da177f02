"""`sempa-mlx sparse fit` and `sempa-mlx sparse explain`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.chosen_encoder import load_encoder
from sempa_mlx.commands.embed import EmbedRequest
from sempa_mlx.commands.evaluate import defined
from sempa_mlx.commands.vectors import RECORD_FILES
from sempa_mlx.config import SparseConfig
from sempa_mlx.console import Console, fitting
from sempa_mlx.data.rankings import RankedSentences, ranked_sentences, unranked
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.files import named_path, refuse_existing

if TYPE_CHECKING:
    from sempa_mlx.encoder.coding import FittedCoder
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.sparse import SparseCoder

ROOM = 56  # columns for what a latent stands for, in a terminal of 80
NUM_WORDS = 6


@dataclass(frozen=True, slots=True)
class System:
    """One model and how it embeds; None leaves it to the run folder and defaults."""

    model: str | None = None
    adapter_path: Path | None = None
    adapter_scale: float | None = None
    method: str | None = None

    def load(self, console: Console) -> "Encoder":
        """Load it as `embed` does."""
        request = EmbedRequest(
            *("", None, None, self.model, self.adapter_path, self.adapter_scale, self.method),
            *(None, None),
        )
        return load_encoder(console, request)


def run_sparse_fit(  # noqa: PLR0913 - the command's own parts
    console: Console,
    system: System,
    data: str,
    settings: SparseConfig,
    out: Path,
    *,
    seed: int,
    force: bool,
) -> None:
    """Fit a sparse coder to embeddings of the sentences of a file, and write it."""
    from sempa_mlx.encoder.coder_file import write_coder
    from sempa_mlx.encoder.sparse import check_k

    if out.suffix != ".safetensors":
        raise UsageError(Problem("a coder is a .safetensors file", str(out)))
    refuse_existing(out, force=force)
    if settings.hidden is not None and settings.coder != "lexical":
        check_k(settings.k, settings.hidden)
    sentences = read_sentences(data, settings)
    encoder = system.load(console)
    fitted = fit_shown(console, encoder, sentences, settings, seed)
    write_coder(out, fitted.coder, fitted.examples)
    console.result(str(out))
    console.document({"path": str(out), **facts(fitted)})
    console.say(f"use it:  sempa-mlx embed FILE --sparse {out}")


def read_sentences(data: str, settings: SparseConfig) -> RankedSentences:
    """Read the sentences of a preference file, with their rankings, or the lines of a text.

    Raises:
        DataError: there is no such file, it has faults, or nothing is in it.
    """
    from sempa_mlx.data.preferences import read_preferences
    from sempa_mlx.data.readers import has_suffix, read_lines
    from sempa_mlx.data.sources import training_source

    path = named_path(data)
    if data in ("nli", "demo") or has_suffix(path, RECORD_FILES):
        source = training_source(data)
        records = read_preferences(source.path, skip_faulty=source.is_downloaded).records
        found = ranked_sentences(records, settings.sentences)
    else:
        found = unranked((line.text for line in read_lines(path)), settings.sentences)
    if len(found.texts) < 2:
        what = f"{len(found.texts)} sentences are too few to fit a coder"
        raise DataError(Problem(what, data), state="nothing was fitted")
    return found


def fit_shown(
    console: Console,
    encoder: "Encoder",
    sentences: RankedSentences,
    settings: SparseConfig,
    seed: int,
) -> "FittedCoder":
    """Fit a coder, showing how far it is and how well it does."""
    from sempa_mlx.encoder.coding import fit_coder_after
    from sempa_mlx.encoder.vector_cache import default_folder

    count, epochs = len(sentences.texts), settings.epochs
    with (
        console.progress("embedding", count, "texts") as embedded,
        console.progress("fitting", epochs, "epochs") as fitted_epochs,
    ):
        fitted = fit_coder_after(
            encoder,
            sentences,
            settings,
            folder=default_folder(),
            seed=seed,
            on_progress=embedded,
            on_epoch=lambda _: fitted_epochs(1),
        )
    console.say(fit_line(fitted))
    return fitted


def fit_line(fitted: "FittedCoder") -> str:
    """Say in one line how well a coder does on what it was fitted to."""
    coder, left = fitted.coder, fitted.unexplained
    unexplained = "an undefined share" if math.isnan(left) else f"{left:.1%}"
    return (
        f"{coder.kind}: {coder.num_texts} texts, {coder.hidden} latents, "
        f"{fitted.num_values:.1f} values a code, {unexplained} of the variance "
        f"unexplained, {fitted.dead:.1%} of the latents never used"
    )


def facts(fitted: "FittedCoder") -> dict[str, Any]:
    """Return what a document says of a fitted coder."""
    found = {
        "variance_unexplained": fitted.unexplained,
        "dead_share": fitted.dead,
        "mean_values": fitted.num_values,
    }
    return fitted.coder.describe() | defined(found)


def run_sparse_explain(
    console: Console, system: System, path: Path, texts: Sequence[str], *, top: int
) -> None:
    """Print the strongest latents of texts: their words, and training sentences that fire them."""
    from sempa_mlx.encoder.coder_file import describe_coder, read_examples
    from sempa_mlx.encoder.sparse_embed import Coding

    if not texts or not all(text.strip() for text in texts):
        raise UsageError("give a text to explain")
    if system.adapter_path is None and system.model is None and path.is_dir():
        system = System(None, path, system.adapter_scale, system.method)
    describe_coder(path)  # before a model is loaded
    encoder = system.load(console)
    coding, examples = Coding.open(encoder, path), read_examples(path)
    codes, _ = coding.encode(texts)
    found = []
    for row, text in enumerate(texts):
        part = slice(codes.indptr[row], codes.indptr[row + 1])
        strongest = sorted(
            zip(codes.indices[part].tolist(), codes.data[part].tolist(), strict=True),
            key=lambda pair: (-pair[1], pair[0]),
        )[:top]
        words = latent_words(encoder, coding.coder, [latent for latent, _ in strongest])
        latents = [
            {
                "latent": latent,
                "value": value,
                "words": spelled,
                "examples": list(examples.get(latent, ())),
            }
            for (latent, value), spelled in zip(strongest, words, strict=True)
        ]
        num_values = int(codes.indptr[row + 1] - codes.indptr[row])
        found.append({"text": text, "values": num_values, "latents": latents})
        _report(console, found[-1])
    console.document({"coder": coding.coder.describe(), "texts": found})


def latent_words(
    encoder: "Encoder", coder: "SparseCoder", latents: Sequence[int]
) -> list[list[str]]:
    """Return the words that each latent's direction lies closest to, of different forms."""
    from sempa_mlx.evaluation.tokens import fold, rank_tokens, spell

    tokenizer = encoder.loaded.tokenizer
    if coder.kind == "lexical":
        return [[spell(tokenizer, latent).strip()] for latent in latents]
    directions = coder.atoms[list(latents)]
    ranked = rank_tokens(encoder.loaded.model, directions, [4 * NUM_WORDS] * len(latents))
    found = []
    for tokens in ranked:
        forms = {fold(tokenizer, token): spell(tokenizer, token).strip() for token in tokens[::-1]}
        words = [text for text in list(forms.values())[::-1] if text]
        found.append(words[:NUM_WORDS])
    return found


def _report(console: Console, found: dict[str, Any]) -> None:
    console.result(f"\n{found['text']}\n  {found['values']} latents; the strongest:\n")
    for latent in found["latents"]:
        words = fitting(latent["words"], ROOM)
        console.result(f"  {latent['value']:6.2f}  {latent['latent']:>6}  {words}")
        for text in latent["examples"]:
            console.result(
                f"                  {text if len(text) <= ROOM else text[: ROOM - 1] + '…'}"
            )
