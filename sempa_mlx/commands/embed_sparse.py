"""`sempa-mlx embed --sparse`: what it takes, and what it says."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.console import Console
from sempa_mlx.errors import Problem

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.sparse_embed import Coded, Coding


@dataclass(frozen=True, slots=True)
class SparseOptions:
    """The coder's file or run folder, and values of a code; None: no codes, the coder's own."""

    coder: Path | None = None
    k: int | None = None

    def faults(self, finishing: Sequence[str]) -> list[Problem]:
        """Return what cannot be meant; `finishing` are options given that change vectors."""
        if self.coder is None:
            fix = "add --sparse CODER"
            return [Problem("--k counts values of sparse codes", fix=fix)] if self.k else []
        what = "{} changes vectors, but a coder codes them as they leave the model"
        return [Problem(what.format(name), fix="leave it out") for name in finishing]

    def format_faults(self, file_format: str) -> list[Problem]:
        """Return what is wrong with a format that is known, but not for codes."""
        if self.coder is not None and file_format in ("npy", "csv", "parquet"):
            fix = "write .npz, .safetensors or .jsonl"
            return [Problem(f"`{file_format}` holds vectors, not sparse codes", fix=fix)]
        return []

    def check_coder(self) -> None:
        """Look at the coder's file before a model is loaded.

        Raises:
            ModelError: there is none, or it is something else.
            UsageError: it has not k latents.
        """
        from sempa_mlx.encoder.coder_file import describe_coder
        from sempa_mlx.encoder.sparse import check_k

        if self.coder is not None:
            about = describe_coder(self.coder)
            check_k(self.k or about["k"], about["hidden"])


def open_coding(
    console: Console, options: SparseOptions, encoder: "Encoder", run: Path | None
) -> "Coding | None":
    """Put the coder that is asked for, if one is, behind the encoder."""
    from sempa_mlx.encoder.sparse_embed import Coding

    if options.coder is None:
        return None
    coding = Coding.open(encoder, options.coder, options.k, run)
    coder = coding.coder
    console.say(f"coder: {coder.kind}, {coding.k} of {coder.hidden} latents")
    return coding


def token_names(coding: "Coding") -> tuple[str, ...] | None:
    """Return the tokens that are the latents of a lexical coder; None of other coders."""
    from sempa_mlx.evaluation.tokens import spell

    if coding.coder.kind != "lexical":
        return None
    tokenizer = coding.encoder.loaded.tokenizer
    return tuple(spell(tokenizer, token) for token in range(coding.coder.hidden))


def show_codes(console: Console, coding: "Coding", coded: "Coded") -> None:
    """Say what was written."""
    if coded.num_empty:
        texts = "1 text has" if coded.num_empty == 1 else f"{coded.num_empty} texts have"
        console.warn(f"{texts} a code without values, which nothing finds")
    beside = f", described in {coded.sidecar}" if coded.sidecar else ""
    mean = coded.num_values / coded.count
    console.say(f"{coded.count} codes of {mean:.1f} values on average{beside}")
    console.result(str(coded.path))
    if coded.path and coded.sidecar:  # without a description it is for other engines
        say_search(console, coded.path)
    console.document(
        {
            "path": str(coded.path),
            "sidecar": str(coded.sidecar) if coded.sidecar else None,
            "count": coded.count,
            "k": coding.k,
            "latents": coding.coder.hidden,
            "values": coded.num_values,
            "empty": coded.num_empty,
            "truncated": coded.num_truncated,
        }
    )


def say_search(console: Console, store: Path) -> None:
    """Say what to do with a store that has just been written, if its name says what it is."""
    from sempa_mlx.commands.search import ENDINGS

    if store.suffix in ENDINGS:
        console.say(f'search in it:  sempa-mlx search {shlex.quote(str(store))} "some words"')
