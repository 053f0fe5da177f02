"""`sempa-mlx eval sparse`: sparse codes beside other ways to make embeddings small."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sempa_mlx.commands.evaluate import defined, finish
from sempa_mlx.commands.evaluate_sparse_tables import report
from sempa_mlx.commands.sparse import System
from sempa_mlx.commands.vectors import WHITENING_RATIO, unlabelled_texts
from sempa_mlx.console import Console
from sempa_mlx.data.sts_sets import Protocol
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import refuse_read

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.sparse import SparseCoder
    from sempa_mlx.evaluation.compression import CompressionScore, ScoredRows
    from sempa_mlx.evaluation.retrieval import RetrievalTask, Search

NUM_ROWS = 2000  # preference rows that ask for their best candidate


@dataclass(frozen=True, slots=True)
class SparseRequest:
    """What is compared, on what; None leaves it to defaults, or leaves it out."""

    coders: Sequence[Path]
    ks: Sequence[int]
    data: str
    tasks: Sequence[str] | None
    protocol: Protocol | None
    fit: Path | None
    pairs: str | None


@dataclass(frozen=True, slots=True)
class _Embedded:
    """Raw vectors of texts by row, and of the texts that other ways are fitted to."""

    rows: dict[str, int]
    vectors: np.ndarray
    fit: np.ndarray


def run_eval_sparse(
    console: Console, system: System, request: SparseRequest, *, out: Path | None
) -> None:
    """Print what every way costs and keeps, how codes use their latents, and what they find."""
    from sempa_mlx.encoder.sparse_embed import Coding
    from sempa_mlx.evaluation.compression import compare_compressions

    refuse_read(out, request.data, request.pairs, request.fit, *request.coders)
    names = _names(request.coders)  # which reads their files before a model is loaded
    tasks = sts_tasks(request.data, request.tasks, request.protocol)
    asked = _retrieval_task(request.pairs)
    fit_texts = _fit_texts(request.fit, 0) if request.fit else None
    first = request.coders[0]
    if system.adapter_path is None and system.model is None and first.is_dir():
        system = replace(system, adapter_path=first)
    encoder = system.load(console)
    coders = {name: Coding.open(encoder, path).coder for path, name in names.items()}
    fit_texts = fit_texts or _fit_texts(None, WHITENING_RATIO * encoder.hidden_size)
    embedded = _embedded(console, encoder, tasks, asked, fit_texts)
    with console.working("comparing"):
        scores = compare_compressions(
            embedded.vectors,
            [_scored_rows(task, embedded.rows) for task in tasks],
            ks=request.ks,
            fit=embedded.fit,
            coders=coders,
        )
        found = _retrieved(asked, embedded, coders, request.ks) if asked else []
    document = {
        "protocols": {task.name: task.protocol for task in tasks},
        "pairs": {task.name: len(task.pairs) for task in tasks},
        "origins": {task.name: task.origin for task in tasks if task.origin},
        "fit_texts": len(fit_texts),
        "coders": {name: coder.describe() for name, coder in coders.items()},
        "results": [_row(score, tasks) for score in scores],
        "retrieval": found,
        "encoder": encoder.describe(),
    }
    report(console, document)
    finish(console, document, out)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return what tables call coders: kind and the file's stem, or its path if stems are alike."""
    from sempa_mlx.encoder.coder_file import describe_coder

    stems = [path.stem for path in paths]
    return {
        path: f"{describe_coder(path)['kind']} {path.stem if stems.count(path.stem) == 1 else path}"
        for path in paths
    }


def _retrieval_task(pairs: str | None) -> "RetrievalTask | None":
    """Read the first rows of a preference file as queries and candidates."""
    from sempa_mlx.data.preferences import read_preferences
    from sempa_mlx.data.sources import training_source
    from sempa_mlx.evaluation.retrieval import retrieval_task

    if pairs is None:
        return None
    source = training_source(pairs)
    found = read_preferences(source.path, limit=NUM_ROWS, skip_faulty=source.is_downloaded)
    return retrieval_task(found.records)


def _fit_texts(path: Path | None, wanted: int) -> list[str]:
    texts = unlabelled_texts(path, wanted, option="--fit")
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < 2:
        what = f"{len(distinct)} distinct texts are too few to fit anything to"
        raise DataError(Problem(what, str(path or "")), state="nothing was measured")
    return distinct


def _embedded(
    console: Console,
    encoder: "Encoder",
    tasks: Sequence["StsTask"],
    asked: "RetrievalTask | None",
    fit_texts: Sequence[str],
) -> _Embedded:
    """Embed every text once; embeddings are kept, for other coders of the same model."""
    from sempa_mlx.encoder.vector_cache import default_folder, raw_vectors
    from sempa_mlx.evaluation.sts import distinct_sentences

    others = (*asked.queries, *asked.candidates) if asked else ()
    texts = list(dict.fromkeys((*distinct_sentences(tasks), *others)))
    with console.progress("embedding", len(fit_texts) + len(texts), "texts") as advance:
        fit = raw_vectors(encoder, fit_texts, folder=default_folder(), on_progress=advance)
        vectors = raw_vectors(encoder, texts, folder=default_folder(), on_progress=advance)
    return _Embedded({text: row for row, text in enumerate(texts)}, vectors, fit)


def _scored_rows(task: "StsTask", rows: dict[str, int]) -> "ScoredRows":
    from sempa_mlx.evaluation.compression import ScoredRows

    return ScoredRows(
        task.name,
        np.array([rows[pair.sentence1] for pair in task.pairs], dtype=np.int64),
        np.array([rows[pair.sentence2] for pair in task.pairs], dtype=np.int64),
        np.array([pair.score for pair in task.pairs]),
    )


def _row(score: "CompressionScore", tasks: Sequence["StsTask"]) -> dict[str, Any]:
    """Return a result as documents hold it, None where undefined."""
    named = {task.name: value for task, value in zip(tasks, score.spearman, strict=True)}
    mean = float(np.mean(score.spearman))
    return {
        "system": score.system,
        "setting": score.setting,
        "bytes": score.num_bytes,
        "scores": defined(named),
        **defined({"average": mean}),
        "codes": defined(asdict(score.statistics)) if score.statistics else None,
    }


def _retrieved(
    asked: "RetrievalTask",
    embedded: _Embedded,
    coders: Mapping[str, "SparseCoder"],
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    from sempa_mlx.evaluation.retrieval import measure_retrieval

    return [
        {"system": name, "setting": k, "bytes": num_bytes}
        | defined(asdict(measure_retrieval(search, asked.sought, len(asked.candidates))))
        for name, k, num_bytes, search in _searches(asked, embedded, coders, ks)
    ]


def _searches(
    asked: "RetrievalTask",
    embedded: _Embedded,
    coders: Mapping[str, "SparseCoder"],
    ks: Sequence[int],
) -> Iterator[tuple[str, int | None, int, "Search"]]:
    """Yield name, k, bytes and search of dense vectors, and of codes as they are kept."""
    from sempa_mlx.encoder.postprocess import fit_post
    from sempa_mlx.encoder.sparse import shortened
    from sempa_mlx.evaluation.compression import bytes_a_value
    from sempa_mlx.evaluation.quantised import halved_codes
    from sempa_mlx.evaluation.retrieval import code_search, dense_search

    queries, candidates = (
        embedded.vectors[[embedded.rows[text] for text in texts]]
        for texts in (asked.queries, asked.candidates)
    )
    size = 4 * queries.shape[1]
    mean = embedded.fit.mean(axis=0, dtype=np.float64).astype(np.float32)
    yield "dense", None, size, dense_search(queries, candidates)
    yield "dense centred", None, size, dense_search(queries - mean, candidates - mean)
    standard = fit_post(embedded.fit, "standardize", 0, vectors="").apply
    yield "dense standardized", None, size, dense_search(standard(queries), standard(candidates))
    for name, coder in coders.items():
        possible = [k for k in sorted(set(ks)) if k <= coder.hidden]
        if not possible:
            continue
        whole = [coder.encode(each, possible[-1]) for each in (queries, candidates)]
        for k in possible:
            one, other = (halved_codes(shortened(each, k)) for each in whole)
            yield name, k, k * bytes_a_value(coder.hidden), code_search(one, other)
