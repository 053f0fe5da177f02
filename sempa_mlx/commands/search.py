"""`sempa-mlx search`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.embed import STREAM, naming, text_source
from sempa_mlx.commands.vectors import warn_cut
from sempa_mlx.console import Console
from sempa_mlx.data.readers import read_lines
from sempa_mlx.errors import DataError, ModelError, Problem, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sempa_mlx.encoder.dense_search import DenseStore
    from sempa_mlx.encoder.ranking import Hits

SPARSE, DENSE = "sparse", "dense"
ENDINGS = (".npy", ".npz", ".safetensors", ".parquet", ".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to search for in what; paths that are None are those that the store names."""

    store: Path
    query: str
    k: int
    texts: Path | None
    model: str | None
    adapter_path: Path | None
    sparse: Path | None
    post: Path | None
    precision: str | None = None
    rescore: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Hits of each query, the number of lines searched, and their texts if they are known."""

    hits: "list[Hits]"
    count: int
    texts: "Sequence[str] | Mapping[int, str] | None"


def run_search(console: Console, request: SearchRequest) -> None:
    """Find the lines nearest to one text, or to each line of stdin."""
    console.say(f"searching {request.store}")
    kind = _kind(request)
    queries = _queries(request.query)
    if kind == DENSE:
        found = _search_vectors(console, request, queries)
    else:
        found = _search_codes(console, request, queries)
    _show(console, request, queries, found)
    console.document(
        {
            "store": str(request.store),
            "kind": kind,
            "count": found.count,
            "k": request.k,
            "queries": [
                {"query": query, "hits": [_as_document(found, *hit) for hit in hits]}
                for query, hits in zip(queries, found.hits, strict=True)
            ],
        }
    )


def _kind(request: SearchRequest) -> str:
    """Tell vectors from codes by ending and content; refuse options of the other kind."""
    from sempa_mlx.encoder.sparse_store import holds_codes

    if request.store.suffix not in ENDINGS:
        what = f"not a store: it ends in none of {', '.join(ENDINGS)}"
        fix = "write one: sempa-mlx embed FILE"
        raise UsageError(Problem(what, str(request.store), fix=fix))
    kind = SPARSE if holds_codes(request.store) else DENSE
    faults = []
    if kind == DENSE and request.sparse is not None:
        faults.append(Problem("--sparse names a coder, but the store holds vectors"))
    if kind == SPARSE and request.post is not None:
        faults.append(Problem("--post names a map of vectors, but the store holds codes"))
    if kind == SPARSE and request.precision is not None:
        faults.append(Problem("--precision names codes of vectors; the store holds sparse ones"))
    if kind == DENSE and request.precision is not None and request.store.suffix != ".npy":
        fix = "embed into a .npy: sempa-mlx embed FILE --precision " + request.precision
        faults.append(Problem("--precision names codes beside a .npy", str(request.store), fix=fix))
    if request.rescore is not None and request.precision is None:
        faults.append(Problem("--rescore goes with --precision"))
    if faults:
        raise UsageError(faults, state="nothing was searched")
    return kind


def _queries(query: str) -> list[str]:
    """Return the query, or those on stdin; all that are empty are faults."""
    if query != STREAM:
        if not query.strip():
            raise UsageError("the query is empty", state="nothing was searched")
        return [query]
    with tempfile.TemporaryDirectory() as spool:
        copy = text_source(query, Path(spool))
        with naming(copy, query):
            lines = list(read_lines(copy))
    faults = [Problem("an empty query", f"stdin:{x.number}") for x in lines if not x.text.strip()]
    if not lines:
        faults = [Problem("no query", "stdin", fix="give one a line")]
    if faults:
        raise DataError(faults, state="nothing was searched")
    return [line.text for line in lines]


def _search_vectors(console: Console, request: SearchRequest, queries: list[str]) -> Found:
    from dataclasses import replace

    from sempa_mlx.encoder.dense_search import read_dense
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.quantised_store import RESCORE, read_quantised
    from sempa_mlx.encoder.reopen import reopen

    store = read_dense(request.store)
    count = len(store.vectors)
    codes = None
    if request.precision is not None:  # before a model is loaded
        codes = read_quantised(store, request.store, request.precision)
    texts = _texts(request, count)
    with console.working("loading the model"):
        encoder = reopen(
            *(store.about, str(store.place)),
            model=request.model,
            adapter_path=request.adapter_path,
            post=request.post,
        )
    unit = Encoder(encoder.loaded, replace(encoder.settings, normalize=True))
    vectors, num_cut = unit.encode_counted(queries)
    warn_cut(console, num_cut, encoder.settings.max_tokens)
    if codes is None:
        hits = store.search(vectors, request.k)
    else:
        hits = codes.search(vectors, request.k, request.rescore or RESCORE)
    if texts is None:
        return Found(hits, count, _known_lines(console, request.store, store, hits))
    return Found(hits, count, texts)


def _known_lines(
    console: Console, path: Path, store: "DenseStore", hits: "list[Hits]"
) -> "Mapping[int, str] | None":
    """Return the lines found: those in the store, else those of the file that was embedded."""
    from sempa_mlx.encoder.line_ids import ids_path, lines_at

    rows = [row for each in hits for row, _ in each]
    if store.texts is not None:
        return {row: store.texts[row] for row in rows}
    source, ids = store.about.get("source"), store.ids
    if source is None or (ids is None and not ids_path(path).is_file()):
        return None
    found = lines_at(Path(source), rows, store.read_ids(path) if ids is None else ids)
    if found is None:
        console.say(f"{source} is no longer what was embedded: --texts names the lines' file")
    return found


def _search_codes(console: Console, request: SearchRequest, queries: list[str]) -> Found:
    from sempa_mlx.encoder.inverted_index import InvertedIndex
    from sempa_mlx.encoder.reopen import reopen
    from sempa_mlx.encoder.sparse_embed import Coding
    from sempa_mlx.encoder.sparse_store import read_store

    store = read_store(request.store)
    count = store.codes.shape[0]
    texts = _texts(request, count) or store.texts
    coder = _own_coder(request, store.about)
    with console.working("loading the model"):
        encoder = reopen(
            *(store.about["encoder"], str(request.store)),
            model=request.model,
            adapter_path=request.adapter_path,
        )
        coding = Coding.open(encoder, coder, store.about["k"])
    codes, num_cut = coding.encode(queries)
    warn_cut(console, num_cut, encoder.settings.max_tokens)
    for query, size in zip(queries, codes.indptr[1:] - codes.indptr[:-1], strict=True):
        if not size:
            console.warn(f"a query has a code without values, which is like nothing: {query}")
    found = InvertedIndex(store.codes).search(codes, request.k)
    sharing = [[(row, score) for row, score in hits if score > 0] for hits in found]
    return Found(sharing, count, texts)


def _own_coder(request: SearchRequest, about: dict[str, Any]) -> Path:
    """Return where the coder is that made the codes; no other will do."""
    from sempa_mlx.encoder.coder_file import describe_coder

    place = str(request.store)
    if not {"k", "coder", "encoder"} <= about.keys():
        raise DataError(Problem("does not say what made its codes", place, fix="embed again"))
    made = dict(about["coder"])
    stored = made.pop("path")
    path = request.sparse or (Path(stored) if stored else None)
    if path is None or (request.sparse is None and not path.is_file()):
        what = f"its coder is no longer in {stored}" if stored else "names no file of its coder"
        raise ModelError(Problem(what, place, fix="say where it is: --sparse FILE"))
    given = describe_coder(path)
    del given["format"]
    if made != given:
        what = f"coded by another coder than {path}"
        found = f"by {made['kind']} {made['digest']}, not {given['kind']} {given['digest']}"
        raise ModelError(Problem(what, place, found, "name that coder: --sparse FILE"))
    return path


def _texts(request: SearchRequest, count: int) -> list[str] | None:
    if request.texts is None:
        return None
    texts = [line.text for line in read_lines(request.texts)]
    if len(texts) != count:
        what = f"{len(texts)} lines, but {request.store} is made of {count}"
        raise DataError(Problem(what, str(request.texts)), state="nothing was searched")
    return texts


def _as_document(found: Found, row: int, score: float) -> dict[str, Any]:
    text = None if found.texts is None else found.texts[row]
    return {"line": row + 1, "score": score, "text": text}


def _show(console: Console, request: SearchRequest, queries: list[str], found: Found) -> None:
    """Print a block of lines a query; bare lines name the query's number if there may be more."""
    width = max(len("line"), len(str(found.count)))
    for number, (query, hits) in enumerate(zip(queries, found.hits, strict=True), start=1):
        if console.mode == "human":
            console.result(f"\n{query}\n")
            console.result(f"{'score':>7}  {'line':>{width}}" + ("  text" if found.texts else ""))
        if len(hits) < min(request.k, found.count):
            console.say(f"only {len(hits)} of {found.count} lines share a latent with the query")
        for row, score in hits:
            text = "" if found.texts is None else found.texts[row]
            if console.mode == "quiet":
                first = f"{number} " if request.query == STREAM else ""
                console.result(f"{first}{score:.4f} {row + 1} {text}".rstrip())
            else:
                console.result(f"{score:7.4f}  {row + 1:>{width}}  {text}".rstrip())
