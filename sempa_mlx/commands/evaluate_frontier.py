"""`sempa-mlx eval frontier`: what the dial buys and what it costs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.chosen_encoder import chosen_base
from sempa_mlx.commands.evaluate import defined, finish, folder_name
from sempa_mlx.commands.evaluate_generation import with_error
from sempa_mlx.console import Console
from sempa_mlx.data.readers import read_text
from sempa_mlx.files import refuse_read, write_text

if TYPE_CHECKING:
    from sempa_mlx.evaluation.frontier import FrontierPoint


@dataclass(frozen=True, slots=True)
class FrontierRequest:
    """An adapter, the scales to look at (none: the usual ones), pairs and a text."""

    adapter: Path
    text: Path
    model: str | None = None
    scales: Sequence[float] = ()
    data: str = "stsb"
    pairs: int | None = None
    max_tokens: int | None = None


def run_eval_frontier(
    console: Console, request: FrontierRequest, *, plot: Path | None, out: Path | None
) -> None:
    """Print one row a scale; draw the plot if a file is named."""
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.data.sources import dev_source
    from sempa_mlx.data.sts_sets import load_dev_pairs
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.evaluation.frontier import SCALES, frontier_points
    from sempa_mlx.evaluation.frontier_svg import frontier_svg
    from sempa_mlx.evaluation.generation import text_drift
    from sempa_mlx.evaluation.sts import distinct_sentences
    from sempa_mlx.model.released import shown

    for written in (out, plot):
        refuse_read(written, request.data, request.text)
    source = dev_source(request.data)
    task = StsTask(source.label, "dev", load_dev_pairs(source.path, request.pairs))
    content = read_text(request.text, state="nothing was measured")
    base, revision = chosen_base(request.model, [request.adapter])
    with console.working(f"loading {shown(request.adapter)}"):
        encoder = Encoder.load(base, adapter_path=request.adapter, revision=revision)
    if encoder.settings.post is not None:
        # A map is fitted to the vectors of one scale, and this looks at several.
        console.say(f"without the fitted {encoder.settings.post.kind} of {request.adapter}")
        encoder = Encoder(encoder.loaded, replace(encoder.settings, post=None))
    tokens = encoder.loaded.tokenizer.encode(content)[: request.max_tokens]
    scales = sorted({0.0, *(request.scales or SCALES)})
    with console.progress("text", len(tokens) * len(scales), "tokens") as advance:
        drifts = text_drift(encoder.loaded.model, tokens, scales, on_progress=advance)
    num_texts = len(distinct_sentences([task])) * len(scales)
    with console.progress("pairs", num_texts, "sentences") as advance:
        points = frontier_points(encoder, [task], drifts, advance)
    _report(console, points, request, f"{len(task.pairs):,} pairs of {task.name}")
    document = {
        "adapter": str(request.adapter),
        "pairs": {"source": task.name, "count": len(task.pairs)},
        "text": str(request.text),
        "encoder": encoder.describe(),
        "results": _documents(points),
    }
    if plot is not None:
        name = folder_name(request.adapter)
        title = f"{name}, {encoder.settings.method} on {task.name}"
        write_text(plot, frontier_svg(points, title.encode(errors="replace").decode()))
        console.say(f"plot: {plot}")
    finish(console, document, out)


def _report(
    console: Console, points: "Sequence[FrontierPoint]", request: FrontierRequest, pairs: str
) -> None:
    from sempa_mlx.evaluation.frontier import on_frontier
    from sempa_mlx.evaluation.generation import WINDOW

    base = next(point for point in points if point.scale == 0)
    rows = [
        [
            f"{point.scale:g} *" if best else f"{point.scale:g}",
            *_spearman_cells(point.spearman, base.spearman),
            with_error(text.perplexity, text.standard_error, 2),
            with_error(text.perplexity / base.drift.perplexity.perplexity, math.nan, 3),
            with_error(point.drift.kl.value, math.nan, 4),
        ]
        for point, best in zip(points, on_frontier(points), strict=True)
        for text in [point.drift.perplexity]
    ]
    columns = ["scale", "Spearman", "gain", "perplexity", "x base", "KL"]
    note = (
        f"* no other scale has both more Spearman and less KL\n"
        f"Spearman x 100: {pairs}\n"
        f"perplexity ± standard error: {base.drift.perplexity.num_scored:,} tokens of "
        f"{request.text.name}\n"
        f"windows of {WINDOW} tokens; KL to the base in nats a token"
    )
    title = f"{folder_name(request.adapter)}: what its scale gains and costs"
    console.table(title, columns, rows, note)


def _spearman_cells(spearman: float, base: float) -> list[str]:
    if math.isnan(spearman):
        return ["undefined", "undefined"]
    gain = "undefined" if math.isnan(base) else f"{(spearman - base) * 100:+.2f}"
    return [f"{spearman * 100:.2f}", gain]


def _documents(points: "Sequence[FrontierPoint]") -> list[dict[str, Any]]:
    """Return the points for JSON, Spearman x 100 as in `eval sts`."""
    from sempa_mlx.evaluation.frontier import on_frontier

    return [
        defined(
            {"adapter_scale": point.scale, "spearman": point.spearman * 100}
            | asdict(point.drift.perplexity)
            | {"kl": point.drift.kl.value, "kl_standard_error": point.drift.kl.standard_error}
            | {"on_frontier": best}
        )
        for point, best in zip(points, on_frontier(points), strict=True)
    ]
