"""Time search in a file of vectors that is larger than what search may keep in memory.

    python benchmarks/search.py [--rows 1000000] [--dim 576] [--folder DIR] [--real FILE.npy]

Vectors are drawn at random at unit length: exact search compares every row, so nothing is easier or
harder about real ones. Reported are the median seconds of a call with 1 and with 32 queries, the
same for one plain product over the mapped file, and by how much the process grew. What codes miss
depends on the vectors: recall@10 is measured on those of --real, half of them as queries.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import sempa_mlx  # noqa: F401 - before numpy, as in the program

import numpy as np  # isort: skip

from sempa_mlx.encoder.dense_search import DenseStore
from sempa_mlx.encoder.quantised_store import (
    PRECISIONS,
    QuantisedStore,
    codes_path,
    quantise,
    read_quantised,
)
from sempa_mlx.runtime import machine, package_versions

REPEATS = 5
BLOCK = 50_000


def write_vectors(path: Path, rows: int, dim: int) -> None:
    draw = np.random.default_rng(0)
    found = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    for start in range(0, rows, BLOCK):
        part = draw.standard_normal((min(BLOCK, rows - start), dim), dtype=np.float32)
        found[start : start + BLOCK] = part / np.linalg.norm(part, axis=1, keepdims=True)
    found.flush()


def resident_mb() -> float:
    """Return the resident memory of this process, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def timed(store: DenseStore | QuantisedStore, queries: np.ndarray) -> dict[str, float]:
    """Time searches; the file is in the system's cache."""
    store.search(queries[:1], 10)
    before = resident_mb()
    found = {
        f"seconds_{n}": round(median_seconds(lambda n=n: store.search(queries[:n], 10)), 3)
        for n in (1, 32)
    }
    return found | {"grown_mb": round(resident_mb() - before, 1)}


def recall(file: Path, folder: Path) -> dict[str, float]:
    """Return recall@10 of codes against exact search on real vectors, every second one a query."""
    vectors = np.load(file).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, rows = vectors[::2][:1000], vectors[1::2]
    path = folder / "search-real.npy"
    np.save(path, rows)
    store = DenseStore(np.load(path, mmap_mode="r"), {"normalize": True}, path)
    exact = store.search(queries, 10)
    found: dict[str, float] = {"rows": len(rows), "queries": len(queries)}
    for precision in PRECISIONS:
        quantise(store, path, precision)
        codes = read_quantised(store, path, precision)
        for rescore in (1, 2, 8):
            hits = codes.search(queries, 10, rescore)
            shared = [
                len(dict(a).keys() & dict(b).keys()) for a, b in zip(hits, exact, strict=True)
            ]
            found[f"{precision} rescore {rescore}"] = round(sum(shared) / 10 / len(queries), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    path = arguments.folder / f"search-{arguments.rows}-{arguments.dim}.npy"
    if not path.is_file():
        write_vectors(path, arguments.rows, arguments.dim)
    store = DenseStore(np.load(path, mmap_mode="r"), {"normalize": True}, path)
    queries = np.random.default_rng(1).standard_normal((32, arguments.dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    results: dict[str, object] = {"rows": arguments.rows, "dim": arguments.dim}
    results["float32"] = timed(store, queries) | {"file_mb": path.stat().st_size >> 20}
    for precision in PRECISIONS:
        out = codes_path(path, precision)
        if not out.is_file():
            quantise(store, path, precision)
        codes = read_quantised(store, path, precision)
        results[precision] = timed(codes, queries) | {"file_mb": out.stat().st_size >> 20}
    plain = store.vectors @ queries[0]
    exact = np.argsort(-plain, kind="stable")[:10].tolist()
    results["same_rows_as_plain"] = [row for row, _ in store.search(queries[:1], 10)[0]] == exact
    results["plain_product"] = {"seconds_1": median_seconds(lambda: store.vectors @ queries[0])}
    if arguments.real:
        results["recall@10"] = recall(arguments.real, arguments.folder)
    results |= {"machine": asdict(machine()), "versions": package_versions()}
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
