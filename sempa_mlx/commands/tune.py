"""`sempa-mlx eval sts --tune`: parameters of methods, found on the dev set of STS-B."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.commands.evaluate import Systems
from sempa_mlx.commands.vectors import VectorOptions
from sempa_mlx.console import Console
from sempa_mlx.errors import DataError, Problem

if TYPE_CHECKING:
    from sempa_mlx.encoder.tuned import Trial

DEFAULT_TARGET = Path("tuned.json")
DEV_FILES = (
    Path("STSB", "dev.tsv"),
    Path("STS", "STSBenchmark", "sts-dev.csv"),
    Path("downstream", "STS", "STSBenchmark", "sts-dev.csv"),
)


def tune_first(console: Console, systems: Systems, data: str, count: int | None) -> Systems:
    """Tune every system on dev pairs; return the systems with the parameters that were found.

    Raises:
        DataError: there is no dev set.
        ModelError: the target file belongs to another model.
    """
    from sempa_mlx.data.sources import sts_root
    from sempa_mlx.data.sts_sets import load_dev_pairs
    from sempa_mlx.encoder.tuned import check_target, write_tuning
    from sempa_mlx.evaluation.tuning import tune

    target = systems.options.tuned or DEFAULT_TARGET
    tuned = replace(systems, options=replace(systems.options, tuned=target))
    tuned.options.check()
    pairs = load_dev_pairs(_dev_file(sts_root(data)), count)
    for name, encoder in replace(systems, options=VectorOptions()).encoders(console):
        check_target(target, encoder)
        with console.progress(f"tuning {name}", len(pairs), "pairs") as advance:
            tuning = tune(encoder, pairs, on_progress=advance)
        write_tuning(target, encoder, tuning)
        console.say(
            f"{name}: STS-B dev {_score(tuning.default)} with {_told(tuning.default)} (default), "
            f"{_score(tuning.best)} with {_told(tuning.best)}; {len(tuning.tried)} tried "
            f"on {len(pairs)} pairs"
        )
    console.say(f"tuned parameters: {target}")
    return tuned


def _dev_file(root: Path) -> Path:
    """Find the dev set of STS-B below a folder of STS sets, in either layout."""
    found = next((root / file for file in DEV_FILES if (root / file).is_file()), None)
    if found is None:
        fix = f"put it at {root / DEV_FILES[0]} (score, sentence, sentence), or use --data hub"
        raise DataError(
            Problem("no dev set of STS-B", str(root), fix=fix), state="nothing was tuned"
        )
    return found


def _score(trial: "Trial") -> str:
    defined = trial.spearman == trial.spearman
    return f"{trial.spearman * 100:.2f}" if defined else "undefined"


def _told(trial: "Trial") -> str:
    parameters = trial.parameters
    block = "" if parameters.block is None else f", block {parameters.block}"
    strength = "" if parameters.strength is None else f", strength {parameters.strength:g}"
    return f"layer {parameters.layer}{block}{strength}"
