"""`sempa-mlx eval`: systems side by side; `eval sts`."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sempa_mlx.commands.embed import DEFAULT_MODEL
from sempa_mlx.console import Console
from sempa_mlx.errors import UsageError
from sempa_mlx.files import write_text

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder

TEXT_FORMS = {"senteval": "SentEval text", "mteb": "raw text"}


@dataclass(frozen=True, slots=True)
class Systems:
    """What is compared: a base under several methods, and adapters under several scales."""

    model: str | None
    adapters: Sequence[Path]
    scales: Sequence[float]
    methods: Sequence[str]

    def encoders(self, console: Console) -> Iterator[tuple[str, "Encoder"]]:
        """Yield (name, encoder), the base first; weights are loaded once a base or adapter."""
        from sempa_mlx.encoder.encoder import Encoder
        from sempa_mlx.encoder.settings import EncoderSettings
        from sempa_mlx.model.lora import read_adapter_config

        if not (self.methods or self.adapters):
            raise UsageError("nothing to measure: --no-base needs an --adapter-path")
        recorded = [str(read_adapter_config(folder)["model"]) for folder in self.adapters]
        base = self.model or (recorded[0] if recorded else DEFAULT_MODEL)
        if self.methods:
            with console.working(f"loading {base}"):
                loaded = Encoder.load(base).loaded
            for method in self.methods:
                yield f"base {method}", Encoder(loaded, EncoderSettings(method=method))
            del loaded
        for folder in self.adapters:
            with console.working(f"loading {folder}"):
                encoder = Encoder.load(base, adapter_path=folder)
            for scale in self.scales:
                settings = replace(encoder.settings, adapter_scale=scale)
                suffix = "" if scale == 1 else f" x{scale:g}"
                yield f"{folder.name}{suffix} {settings.method}", Encoder(encoder.loaded, settings)


def run_eval_sts(  # noqa: PLR0913 - the command's own parts
    console: Console,
    systems: Systems,
    data: str,
    names: Sequence[str] | None,
    protocol: Literal["senteval", "mteb"],
    *,
    out: Path | None,
    fail_under: float | None,
) -> None:
    """Print one row a system and one column a task."""
    from sempa_mlx.data.sources import sts_root
    from sempa_mlx.data.sts_sets import TASKS, load_sts_tasks
    from sempa_mlx.evaluation.sts import average, distinct_sentences, evaluate_sts

    tasks = load_sts_tasks(sts_root(data), names or TASKS, protocol=protocol)
    num_texts = len(distinct_sentences(tasks))
    results: list[dict[str, Any]] = []
    for name, encoder in systems.encoders(console):
        started = time.perf_counter()
        with console.progress(name, num_texts, "texts") as advance:
            scores = evaluate_sts(encoder, tasks, advance)
        results.append(
            {
                "system": name,
                "protocol": protocol,
                "scores": {score.task: _hundredfold(score.spearman) for score in scores},
                "average": _hundredfold(average(scores)),
                "seconds": round(time.perf_counter() - started, 1),
                "encoder": encoder.describe(),
            }
        )
    pairs = {task.name: len(task.pairs) for task in tasks}
    _report_sts(console, results, pairs, protocol)
    finish(console, {"protocol": protocol, "pairs": pairs, "results": results}, out)
    best = max((row["average"] or -math.inf) for row in results)
    if fail_under is not None and best < fail_under:
        console.warn(f"the best average, {best:.2f}, is under {fail_under:g}")
        sys.exit(1)


def _report_sts(
    console: Console, results: list[dict[str, Any]], pairs: dict[str, int], protocol: str
) -> None:
    columns = ["system", *pairs, "avg"]
    rows = [
        [row["system"], *(_cell(row["scores"][task]) for task in pairs), _cell(row["average"])]
        for row in results
    ]
    counts = ", ".join(f"{task} {count}" for task, count in pairs.items())
    note = f"pairs: {counts}"
    title = f"STS, Spearman x 100, protocol {protocol} ({TEXT_FORMS[protocol]})"
    console.table(title, columns, rows, note)


def _hundredfold(value: float) -> float | None:
    """Return the correlation x 100, or None where it is undefined (JSON knows no NaN)."""
    return None if math.isnan(value) else round(value * 100, 4)


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def finish(console: Console, document: dict[str, Any], out: Path | None) -> None:
    """Add where it was measured; write the results to `out` if given, print them in JSON mode."""
    from sempa_mlx.runtime import machine, package_versions

    document |= {"machine": asdict(machine()), "versions": package_versions()}
    if out is not None:
        write_text(out, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        console.say(f"results: {out}")
    console.document(document)
