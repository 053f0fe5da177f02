"""`sempa-mlx demo`: the whole story on the embedded model and data packaged with the program."""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.commands.train import outcome, train_and_show
from sempa_mlx.config import SempaConfig
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.console import Console

if TYPE_CHECKING:
    from sempa_mlx.data.records import StsTask
    from sempa_mlx.encoder.encoder import Encoder

RECIPE = "demo"
NEIGHBOURS = 3
QUERIES = (0, 1, 4)  # lines of the packaged sentences whose neighbours are shown
INTRO = """One small language model, two jobs. This demo
  1. measures how well the untouched model embeds sentences,
  2. trains an adapter on some of {triplets} triplets made for this project (not human-annotated),
  3. compares base and trained model on sentence pairs it has not seen,
  4. measures what training did to the model as a generator,
  5. embeds a text file and finds nearest neighbours in it.
No network is needed."""


def run_demo(console: Console, folder: Path) -> None:
    """Train (or reuse an earlier demo's run), compare, embed, search; print what comes next."""
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.run.folder import RESULTS_FILE, claimed
    from sempa_mlx.run.inputs import read_run_data

    started = time.perf_counter()
    run_folder, text_file = folder / "run", folder / "sentences.txt"
    resolved = resolve_config(RECIPE, flags={"--folder": ("output.path", str(run_folder))})
    config = resolved.config
    refuse_foreign(run_folder, text_file, config)
    data = read_run_data(config)
    data.dev_task, test = _halves(data.dev_task)
    console.say(INTRO.format(triplets=len(data.records)))
    if is_finished(run_folder, config):
        console.heading(f"Training: done by an earlier demo (delete {run_folder} to train again)")
    else:
        with claimed(config, force=True):  # of the same settings, stopped
            console.heading("Training")
            run = train_and_show(console, config, data)
        console.say(outcome(run))
    results = json.loads((run_folder / RESULTS_FILE).read_text(encoding="utf-8"))
    console.heading("Comparing")
    with console.working("loading base and adapter"):
        trained = Encoder.load(run_folder)
    scores = _compare(console, trained, data.dev_task, test)
    shutil.copyfile(_packaged_sentences(), text_file)
    generation = _generate(console, trained, text_file)
    store = _embed_and_search(console, trained, text_file, run_folder)
    seconds = time.perf_counter() - started
    console.document(
        {
            "training": results,
            "scores": scores,
            "generation": generation,
            "store": str(store),
            "seconds": round(seconds, 1),
        }
    )
    console.heading(f"Done in {seconds / 60:.1f} minutes. Next:")
    console.say(f"  sempa-mlx embed YOUR.txt --adapter-path {run_folder}")
    console.say(
        "  sempa-mlx train --data YOUR.jsonl      (rows: anchor, entailment, contradiction)"
    )
    console.say(f"  sempa-mlx eval sts --data hub --adapter-path {run_folder}")


def refuse_foreign(run_folder: Path, text_file: Path, config: SempaConfig) -> None:
    """Refuse to write over what no earlier demo left.

    Raises:
        UsageError: a run of other settings, another text, or vectors of one are there.
    """
    from sempa_mlx.encoder.line_ids import ids_path
    from sempa_mlx.encoder.vector_form import sidecar_path
    from sempa_mlx.errors import Problem, UsageError
    from sempa_mlx.run.folder import is_run

    vectors = text_file.with_name(f"{text_file.name}.npy")
    ours = text_file.is_file() and text_file.read_bytes() == _packaged_sentences().read_bytes()
    written = (text_file, vectors, sidecar_path(vectors), ids_path(vectors))
    foreign = [path for path in written if path.exists() and not ours]
    if is_run(run_folder) and not _has_settings(run_folder, config):
        foreign.insert(0, run_folder)
    if foreign:
        fix = "name another folder with --folder, or delete it"
        problems = [Problem("not what this demo writes", str(path), fix=fix) for path in foreign]
        raise UsageError(problems, state="nothing was written")


def _packaged_sentences() -> Path:
    from sempa_mlx.data import demo

    return Path(demo.__file__).parent / "sentences.txt"


def is_finished(run_folder: Path, config: SempaConfig) -> bool:
    """Tell whether a folder holds a completed run of exactly these settings."""
    from sempa_mlx.run.folder import RESULTS_FILE

    return (run_folder / RESULTS_FILE).is_file() and _has_settings(run_folder, config)


def _has_settings(run_folder: Path, config: SempaConfig) -> bool:
    from sempa_mlx.errors import ConfigError
    from sempa_mlx.run.folder import CONFIG_COPY

    copy = run_folder / CONFIG_COPY
    try:  # wherever the folder was when it was written
        found = resolve_config(copy, flags={"--folder": ("output.path", config.output.path)}).config
    except ConfigError:
        return False
    return found == config


def _halves(task: "StsTask") -> tuple["StsTask", "StsTask"]:
    """Split the pairs: every second one chooses the best step, the others are the test."""
    from sempa_mlx.data.records import StsTask

    return (
        StsTask("dev half", "demo", task.pairs[::2]),
        StsTask("test half", "demo", task.pairs[1::2]),
    )


def _compare(
    console: Console, trained: "Encoder", dev: "StsTask", test: "StsTask"
) -> dict[str, dict[str, float]]:
    """Print Spearman of base and trained model on both halves of the demo pairs."""
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.settings import EncoderSettings
    from sempa_mlx.evaluation.sts import evaluate_sts

    base_settings = EncoderSettings(adapter_scale=0.0)  # scale 0 is the base, bit for bit
    mean_settings = EncoderSettings(method="mean", adapter_scale=0.0)
    systems = {
        "base, mean pooling": Encoder(trained.loaded, mean_settings),
        "base, PromptEOL": Encoder(trained.loaded, base_settings),
        "trained": trained,
    }
    found: dict[str, dict[str, float]] = {}
    for name, encoder in systems.items():
        with console.working(f"scoring {name}"):
            scores = evaluate_sts(encoder, [dev, test])
        found[name] = {score.task: round(score.spearman * 100, 2) for score in scores}
    tasks = (dev.name, test.name)
    rows = [[name, *(f"{values[task]:.2f}" for task in tasks)] for name, values in found.items()]
    note = f"{len(dev.pairs)} and {len(test.pairs)} pairs; the best step was chosen on the dev half"
    console.table("Sentence similarity, Spearman x 100, demo pairs", ["", *tasks], rows, note)
    return found


def _generate(console: Console, encoder: "Encoder", text_file: Path) -> dict[str, float]:
    """Print perplexity of a text that no training saw, with the adapter off and on."""
    from sempa_mlx.data.readers import read_text
    from sempa_mlx.evaluation.generation import text_drift

    tokens = encoder.loaded.tokenizer.encode(read_text(text_file, state="nothing was measured"))
    scales = [0.0, encoder.settings.adapter_scale]
    with console.working(f"predicting {text_file}"):
        base, trained = text_drift(encoder.loaded.model, tokens, scales)
    before, after = base.perplexity.perplexity, trained.perplexity.perplexity
    console.heading("Generating")
    console.say(f"Perplexity of {len(tokens)} tokens of text that it was not trained on:")
    console.result(f"  {before:.2f} with the adapter off, which is the base, bit for bit")
    console.result(f"  {after:.2f} with it on ({after / before - 1:+.1%})")
    return {"base_perplexity": before, "perplexity": after, "kl": trained.kl.value}


def _embed_and_search(
    console: Console, encoder: "Encoder", text_file: Path, run_folder: Path
) -> Path:
    """Embed the packaged sentences into a file and show neighbours of a few of them."""
    import numpy as np

    from sempa_mlx.data.readers import read_lines
    from sempa_mlx.encoder.store import embed_to_file, nearest

    console.heading("Embedding a text file")
    sentences = [line.text for line in read_lines(text_file)]
    target = text_file.with_name(f"{text_file.name}.npy")
    with console.working(f"embedding {text_file}"):
        store = embed_to_file(
            *(encoder, sentences, target),
            file_format="npy",
            adapter_path=run_folder,
            source=text_file,
        ).path
    vectors = np.load(store, allow_pickle=False)
    console.say(f"{len(vectors)} vectors in {store}; the nearest lines to three of them:")
    for query in QUERIES:
        console.result(f"\n{sentences[query]}")
        for index, similarity in nearest(vectors, vectors[query], NEIGHBOURS + 1)[1:]:
            console.result(f"  {similarity:.3f}  {sentences[index]}")
    return store
