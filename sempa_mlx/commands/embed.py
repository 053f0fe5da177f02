"""`sempa-mlx embed`."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sempa_mlx.commands.chosen_encoder import load_encoder, run_folder, with_run_as_run
from sempa_mlx.commands.embed_sparse import (
    SparseOptions,
    open_coding,
    say_search,
    show_codes,
    token_names,
)
from sempa_mlx.commands.vectors import VectorOptions, warn_cut
from sempa_mlx.console import Console
from sempa_mlx.data.readers import read_lines
from sempa_mlx.disk import writing
from sempa_mlx.errors import DataError, Problem, UsageError
from sempa_mlx.files import refuse_existing

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.sparse_embed import Coding
    from sempa_mlx.encoder.store import Embedded

STREAM = "-"


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What to embed, with what, into what; None leaves it to defaults and the run folder."""

    file: str
    out: str | None
    file_format: str | None
    model: str | None
    adapter_path: Path | None
    adapter_scale: float | None
    method: str | None
    normalize: bool | None
    truncate_dim: int | None
    options: VectorOptions = field(default_factory=VectorOptions)
    sparse: SparseOptions = field(default_factory=SparseOptions)
    update: bool = False
    precision: str | None = None


def run_embed(console: Console, request: EmbedRequest, *, batch_tokens: int, force: bool) -> None:
    """Embed a file into a file, or stdin into JSON lines on stdout."""
    # Before mlx is imported, which may take longer than people wait without a word.
    console.say(f"reading {'stdin' if request.file == STREAM else request.file}")
    from sempa_mlx.encoder.methods import find_method

    request = with_run_as_run(request)
    _check(request)
    if request.method is not None:
        find_method(request.method)  # before a model is loaded
    with tempfile.TemporaryDirectory() as spool:
        source = text_source(request.file, Path(spool))
        with naming(source, request.file):
            count = _count_texts(source)
        out, file_format = _target(request, force=force)
        request = replace(request, update=request.update and not force)
        texts = (line.text for line in read_lines(source))
        if out is None:
            _to_stdout(console, request, texts, count, batch_tokens)
        else:
            _to_file(console, request, texts, count, out, file_format, batch_tokens)


def _check(request: EmbedRequest) -> None:
    """Refuse options that cannot be meant, all at once, and a coder that has not k latents."""
    given = {
        "--normalize": request.normalize is True,
        "--no-normalize": request.normalize is False,
        "--truncate-dim": request.truncate_dim is not None,
        "--post": request.options.post is not None,
    }
    file_format = request.file_format or Path(request.out or "").suffix.removeprefix(".")
    faults = request.sparse.faults([name for name, is_given in given.items() if is_given])
    faults += request.sparse.format_faults(file_format)
    is_stream = (request.out or request.file) == STREAM
    if request.update and (request.sparse.coder or is_stream):
        faults.append(Problem("--update keeps vectors of an earlier file; it goes with no other"))
    if request.precision and (request.sparse.coder or is_stream or file_format not in ("", "npy")):
        faults.append(Problem("--precision adds codes to a .npy of vectors; it goes with no other"))
    if faults:
        raise UsageError([*request.options.faults(), *faults], state="nothing was started")
    request.options.check()
    request.sparse.check_coder()


def text_source(file: str, spool: Path) -> Path:
    """Return the file to read; stdin, or a pipe by its name, is put on disk first.

    It is read twice.
    """
    if file == STREAM and sys.stdin.isatty():
        raise UsageError(Problem("`-` reads stdin, which is a terminal", fix="pipe a file into it"))
    if file != STREAM and not is_pipe(file):
        return Path(file)
    copy = spool / "stdin"
    with _opened_pipe(file) as source, writing(copy), copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


@contextmanager
def naming(copy: Path, file: str) -> Iterator[None]:
    """Have faults of what `text_source` returned name what it was given."""
    name = "stdin" if file == STREAM else file
    try:
        yield
    except DataError as error:
        found = [
            replace(each, place=each.place.replace(str(copy), name)) for each in error.problems
        ]
        raise DataError(found, state=error.state) from error


def _opened_pipe(file: str) -> AbstractContextManager[IO[bytes]]:
    if file == STREAM:
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror}", file)) from error


def is_pipe(file: str) -> bool:
    """Tell whether a name stands for something that can be read only once."""
    path = Path(file)
    return path.exists() and not (path.is_file() or path.is_dir())


def _count_texts(source: Path) -> int:
    """Count the lines, which also finds a bad byte before the model is loaded."""
    count = sum(1 for _ in read_lines(source))
    if count == 0:
        raise DataError(Problem("the file is empty", str(source)), state="nothing was written")
    return count


def _target(request: EmbedRequest, *, force: bool) -> tuple[Path | None, str]:
    from sempa_mlx.encoder.line_ids import ids_path
    from sempa_mlx.encoder.quantised_store import about_path, codes_path, describes_codes
    from sempa_mlx.encoder.sparse_embed import CODE_FORMATS
    from sempa_mlx.encoder.vector_form import FORMATS, format_of, sidecar_path

    is_sparse = request.sparse.coder is not None
    if (request.out or request.file) == STREAM:
        if request.file_format not in (None, "jsonl"):
            raise UsageError("stdout takes --format jsonl only", state="nothing was written")
        return None, "jsonl"
    if request.out is None and is_pipe(request.file):
        what = "a pipe has no name to write beside"
        raise UsageError(Problem(what, request.file, fix="name a file: -o FILE.npy"))
    usual = "npz" if is_sparse else "npy"
    out = Path(request.out or f"{request.file}.{request.file_format or usual}")
    file_format = format_of(out, request.file_format, CODE_FORMATS if is_sparse else FORMATS)
    beside = [] if is_sparse and file_format == "jsonl" else [sidecar_path(out)]
    if file_format == "npy":
        beside.append(ids_path(out))
    updates = request.update and out.exists()
    forced = dict.fromkeys((out, *beside), force or updates)
    if request.precision:
        codes = codes_path(out, request.precision)
        is_ours = updates and describes_codes(codes)
        forced |= dict.fromkeys((codes, about_path(codes)), force or is_ours)
    for path, may_go in forced.items():
        if request.file != STREAM and path.exists() and path.samefile(request.file):
            raise UsageError(f"{path} is the file to embed", state="nothing was written")
        refuse_existing(path, force=may_go)
    return out, file_format


def _to_stdout(
    console: Console, request: EmbedRequest, texts: Iterator[str], count: int, batch_tokens: int
) -> None:
    from sempa_mlx.encoder.sparse_embed import code_to_stream
    from sempa_mlx.encoder.store import embed_for_others, embed_to_stream
    from sempa_mlx.world import World

    encoder, coding = _opened(console, request)
    if World.join().rank:  # the first of the processes that share the texts prints them
        embed_for_others(encoder, texts, batch_tokens=batch_tokens)
        return
    with console.progress("embedding", count, "texts") as advance:
        if coding is None:
            num_cut = embed_to_stream(
                encoder, texts, sys.stdout, batch_tokens=batch_tokens, on_progress=advance
            )
        else:
            num_cut = code_to_stream(
                *(coding, texts, sys.stdout),
                names=token_names(coding),
                batch_tokens=batch_tokens,
                on_progress=advance,
            ).num_truncated
    warn_cut(console, num_cut, encoder.settings.max_tokens)


def _opened(console: Console, request: EmbedRequest) -> "tuple[Encoder, Coding | None]":
    """Load the encoder, and the coder if one is asked for; the texts are shared by all processes.

    Those that `mlx.launch` started beside the first print nothing from now on.
    """
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.world import World

    world = World.join()
    if world.rank:
        console.mute()
    loaded = load_encoder(console, request)
    encoder = Encoder(loaded.loaded, loaded.settings, world=world)
    return encoder, open_coding(console, request.sparse, encoder, run_folder(request))


def _to_file(  # noqa: PLR0913 - one call site, one value each
    console: Console,
    request: EmbedRequest,
    texts: Iterator[str],
    count: int,
    out: Path,
    file_format: str,
    batch_tokens: int,
) -> None:
    from sempa_mlx.encoder.dense_search import known_lines
    from sempa_mlx.encoder.sparse_embed import code_to_file
    from sempa_mlx.encoder.store import embed_for_others, embed_to_file
    from sempa_mlx.world import World

    encoder, coding = _opened(console, request)
    run = run_folder(request)
    # Each process has to know what is known, as they share what is not.
    keeps = request.update and out.exists()
    known = known_lines(encoder, out, run, file_format) if keeps else None
    if World.join().rank:
        embed_for_others(encoder, texts, known=known, batch_tokens=batch_tokens)
        return
    if coding is not None:
        names = token_names(coding) if file_format == "jsonl" else None
        with console.progress("embedding", count, "texts") as advance:
            coded = code_to_file(
                *(coding, texts, out),
                file_format=file_format,
                names=names,
                batch_tokens=batch_tokens,
                on_progress=advance,
            )
        warn_cut(console, coded.num_truncated, encoder.settings.max_tokens)
        show_codes(console, coding, coded)
        return
    with console.progress("embedding", count, "texts") as advance:
        written = embed_to_file(
            *(encoder, texts, out),
            file_format=file_format,
            adapter_path=run,
            source=None if request.file == STREAM or is_pipe(request.file) else Path(request.file),
            known=known,
            batch_tokens=batch_tokens,
            on_progress=advance,
        )
    warn_cut(console, written.num_truncated, encoder.settings.max_tokens)
    if request.precision:
        from sempa_mlx.encoder.dense_search import read_dense
        from sempa_mlx.encoder.quantised_store import quantise

        console.say(f"codes: {quantise(read_dense(out, file_format), out, request.precision)}")
    _show_vectors(console, written, file_format)


def _show_vectors(console: Console, written: "Embedded", file_format: str) -> None:
    kept = f", {written.num_kept} of them kept" if written.num_kept else ""
    console.say(
        f"{written.count} vectors of {written.dim} dimensions{kept}, described in {written.sidecar}"
    )
    console.result(str(written.path))
    if written.path.suffix == f".{file_format}":  # by which `search` knows what it is
        say_search(console, written.path)
    console.document(
        {
            "path": str(written.path),
            "sidecar": str(written.sidecar),
            "count": written.count,
            "dim": written.dim,
            "truncated": written.num_truncated,
        }
    )
