"""`sempa-mlx data check` and `sempa-mlx data download`."""

from pathlib import Path

from sempa_mlx.console import Console
from sempa_mlx.data.preferences import PreferenceReport, check_preferences
from sempa_mlx.data.sources import dev_source, sts_root, training_source
from sempa_mlx.errors import DataError


def run_check(console: Console, file: Path) -> None:
    """Print what a preference file holds; exit 3 if it has faults."""
    report, problems = check_preferences(file)
    console.result(_summary(report))
    if problems:
        raise DataError(problems, state="mend or remove these lines before training")
    console.document(
        {
            "path": report.path,
            "format": report.format,
            "rows": report.rows,
            "kept": report.kept,
            "dropped": dict(report.dropped),
            "mean_words": report.mean_words,
            "ignored_keys": list(report.ignored_keys),
        }
    )
    console.say(f"no faults; train on it:  sempa-mlx train --data {file}")


def _summary(report: PreferenceReport) -> str:
    form = f"{report.format}, " if report.format else ""
    lines = [f"{report.path}: {form}{report.rows} rows, {report.kept} kept"]
    lines += [f"  dropped {count}: {rule}" for rule, count in report.dropped if count]
    if report.mean_words:
        words = ", ".join(f"{name} {count:.1f}" for name, count in report.mean_words.items())
        lines.append(f"  mean words: {words}")
    if report.ignored_keys:
        lines.append(f"  keys without meaning here: {', '.join(report.ignored_keys)}")
    return "\n".join(lines)


def run_download(console: Console) -> None:
    """Fetch training and test data from the Hub into its cache."""
    with console.working("fetching the NLI triplets"):
        train = training_source("nli").path
    with console.working("fetching the STS sets"):
        sts = sts_root("hub")
        dev = dev_source("stsb").path
    console.result(f"{train}\n{sts}")
    console.document({"nli": str(train), "sts": str(sts), "stsb_dev": str(dev)})
