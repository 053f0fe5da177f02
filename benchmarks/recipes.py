"""The table and the plot of docs/results.md, from what benchmarks/recipes.sh measured.

    python benchmarks/recipes.py OUT [--plot frontier.svg]

Seeds of one system (`NAME`, `NAME@1`, …) become one row: mean ± standard deviation.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR")
COST = ("perplexity", "x base", "KL", "HellaSwag", "TruthfulQA mc1")
SPACE = ("uniformity", "isotropy", "GAR")
UNTRAINED = {"prompteol", "prompteol-icl", "ke", "metaeol", "standardize"}

Row = dict[str, float]


def read(out: Path, name: str, kind: str) -> list[dict]:
    """Return the rows of a results file, none if it is not there."""
    path = out / f"{name}-{kind}.json"
    return json.loads(path.read_text("utf-8"))["results"] if path.is_file() else []


def similarity(out: Path, name: str) -> Row:
    """Return the scores of a system in both protocols."""
    found: Row = {}
    for kind in ("senteval", "raw"):
        for row in read(out, name, kind):
            found |= {f"{kind} {task}": row["scores"][task] for task in TASKS}
            found[f"{kind} average"] = row["average"]
    return found


def generation(out: Path, name: str) -> Row:
    """Return what the adapter costs at the strength that dev chose; no adapter costs nothing."""
    if name in UNTRAINED:
        return {"x base": 1.0, "KL": 0.0}
    rows = read(out, name, "generation")
    settings = out / name / "encoder.json"
    if not rows or not settings.is_file():
        return {}
    scale = json.loads(settings.read_text("utf-8"))["adapter_scale"]
    found: Row = {"scale": scale}
    for row in rows:
        if row["adapter_scale"] == scale:
            share = row["perplexity"] / rows[0]["perplexity"]
            found |= {"perplexity": row["perplexity"], "x base": share, "KL": row["kl"]}
    for row in read(out, name, "tasks"):
        if row["adapter_scale"] == scale:
            figures = {(each["task"], each["metric"]): each["value"] for each in row["figures"]}
            found["HellaSwag"] = 100 * figures[("hellaswag", "acc_norm")]
            found["TruthfulQA mc1"] = 100 * figures[("truthfulqa_mc1", "acc")]
    return found


def space(out: Path, name: str) -> Row:
    """Return how even the space is, and how much of a sentence its embedding says."""
    found: Row = {}
    for row in read(out, name, "geometry"):
        found |= {"uniformity": row["uniformity"], "isotropy": row["partition_isotropy"]}
    for row in read(out, name, "tokens"):
        found["GAR"] = row["folded"]["gar"]
    return found


def systems(out: Path) -> dict[str, list[Row]]:
    """Return the rows of every system, one a seed."""
    found: dict[str, list[Row]] = {}
    for path in sorted(out.glob("*-senteval.json")):
        name = path.name.removesuffix("-senteval.json")
        run = name.removesuffix("+standardize")
        row = similarity(out, name) | generation(out, run) | space(out, run)
        found.setdefault("".join([run.split("@")[0], name[len(run) :]]), []).append(row)
    return dict(
        sorted(found.items(), key=lambda item: mean(item[1], "senteval average"), reverse=True)
    )


def mean(rows: Sequence[Row], column: str) -> float:
    """Return the mean over the seeds that have the figure, NaN if none has."""
    values = [row[column] for row in rows if column in row]
    return statistics.fmean(values) if values else math.nan


def cell(rows: Sequence[Row], column: str) -> str:
    """Return mean ± deviation over the seeds that have the figure."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return ""
    small = column in {"KL", "x base", "uniformity", "isotropy", "GAR", "scale"}
    digits = 3 if small else 2
    shown = f"{statistics.fmean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {statistics.stdev(values):.{digits}f}"


def table(found: dict[str, list[Row]], columns: Sequence[str]) -> str:
    """Return a table in Markdown, one row a system."""
    lines = [["system", "seeds", *columns], ["---"] * (len(columns) + 2)]
    lines += [
        [name, str(len(rows)), *(cell(rows, column) for column in columns)]
        for name, rows in found.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def placed(found: dict[str, list[Row]]) -> list[dict]:
    """Return what `frontier.draw` takes of each system; one that was trained needs its cost."""
    shown = [
        {
            "short": name,
            "average": mean(rows, "senteval average"),
            "perplexity": mean(rows, "x base"),
        }
        for name, rows in found.items()
        if any("x base" in row for row in rows)
    ]
    if all(each["short"] in UNTRAINED for each in shown):
        raise SystemExit("no trained system is measured yet: nothing to plot")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = systems(arguments.out)
    parts = [
        table(found, [*(f"senteval {task}" for task in (*TASKS, "average")), "raw average"]),
        table(found, ["senteval average", "raw average", "scale", *COST, *SPACE]),
    ]
    sys.stdout.write("\n\n".join(parts) + "\n")
    if arguments.plot:
        # It needs matplotlib, which the tables do not: benchmarks/requirements.txt has it.
        from frontier import draw

        draw(placed(found), arguments.plot)


if __name__ == "__main__":
    main()
