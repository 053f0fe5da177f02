"""The plot of docs/results.md: what a system embeds like, and what it costs the generator.

    .venv-bench/bin/python benchmarks/frontier.py docs/results.json docs/frontier.svg

A system stands at its perplexity of WikiText-2 test over the base's; one that costs nothing, or
writes nothing, is a line. One without a short name, such as a further seed, is a dot without words.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

TRAINED, OTHER, INK = "#2a78d6", "#8a8883", "#3b3a37"
FAR = 1.3  # from this share on, names stand left of their dots


def draw(systems: list[dict], target: Path) -> None:
    """Draw averages over the seven sets against the rise of perplexity in percent."""
    plt.rcParams |= {"font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "frontier"}
    figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    for each in systems:
        label = f"{each['short']} {each['average']:.2f}"
        share = each["perplexity"]
        if share is None or share <= 1:
            axes.axhline(each["average"], color=OTHER, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                *(label, (0.995, each["average"])),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=OTHER,
            )
            continue
        place = (100 * (share - 1), each["average"])
        axes.scatter(*place, color=TRAINED, zorder=3, s=28)
        if each["short"]:
            side, gap = ("right", -7) if share > FAR else ("left", 7)
            axes.annotate(label, place, (gap, -3), ha=side, textcoords="offset points", color=INK)
    axes.set_xscale("log")
    rises = [100 * (each["perplexity"] - 1) for each in systems if (each["perplexity"] or 0) > 1]
    low, high = min([0.5, *rises]), max([40, *(3 * rise for rise in rises)])  # room for names
    axes.set_xlim(low, high)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("rise of the perplexity of WikiText-2 test")
    axes.set_ylabel("Spearman x 100, average of seven STS sets")
    axes.grid(color="#e3e2de", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    systems = json.loads(arguments.results.read_text(encoding="utf-8"))
    draw(systems, arguments.target)


if __name__ == "__main__":
    main()
