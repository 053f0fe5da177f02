"""Runs the command line inside the test process; writes what it reads, reads what it writes."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from unittest import mock

from sempa_mlx.cli import main
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.run.inputs import read_run_data
from sempa_mlx.run.prepare import prepare_run
from tests.tiny import write_tiny_folder

SENTENCES = (
    "A cat sleeps on the warm stone.",
    "Two dogs run on the grass",
    "",
    "A woman in 2024 reads 17 books",
    'He said "no" — <|im_end|>',
    "Two dogs run on the grass",
)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, results, talk."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """The one JSON document on stdout, read strictly: NaN is none."""
        return json.loads(self.out, parse_constant=lambda name: 1 / 0)

    @property
    def errors(self):
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def run(*arguments, stdin=b""):
    """Run `sempa-mlx ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    source = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with (
        mock.patch.object(sys, "argv", ["sempa-mlx", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", source),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments, stdin=b""):
    """Run a command that has to succeed."""
    outcome = run(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(code, *arguments, stdin=b""):
    """Run a command that has to fail in a way that a user can understand."""
    outcome = run(*arguments, stdin=stdin)
    assert outcome.code == code, outcome.err
    assert outcome.errors, outcome.err
    assert outcome.out == "", "a failed command has no result"
    for word in ("Traceback", "this is a bug"):
        assert word not in outcome.err
    return outcome


def note_embedded(monkeypatch):
    """Return a list that will hold every text that is embedded from now on."""
    embedded = []
    encode = Encoder.encode_counted

    def noted(self, texts, **options):
        embedded.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode_counted", noted)
    return embedded


def write_triplets(path, count=12):
    rows = [
        {
            "anchor": f"The cat number {number} sleeps.",
            "entailment": f"Cat {number} is asleep.",
            "contradiction": f"The dog {number} runs on the grass.",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path, count=12):
    lines = [
        f"{number % 6}.5\tA man has {number} books.\tA woman reads {number * 3} pages.\n"
        for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def write_inputs(folder, **changes):
    """Write what a run reads: a tiny model with `changes`, its training rows and dev pairs."""
    write_tiny_folder(folder / "base", **changes)
    write_triplets(folder / "pairs.jsonl")
    write_pairs(folder / "dev.tsv")
    return folder


def training(folder, *sets, model=None, data=None, dev=None):
    """Arguments that train a tiny model by DPO in a second, on files of `folder` by default.

    `sets` are further settings `section.key=value`.
    """
    options = {
        "--config": "sempa",
        "--model": model or folder / "base",
        "--data": data or folder / "pairs.jsonl",
        "--learning-rate": 0.01,
        "--iters": 3,
        "--batch-size": 4,
    }
    fixed = (f"eval.data={dev or folder / 'dev.tsv'}", "eval.every=1", "train.warmup=0")
    named = [word for option in options.items() for word in option]
    return ["train", *named, *(word for text in (*fixed, *sets) for word in ("--set", text))]


def run_settings(folder, *sets, data=None, model=None):
    """Settings of a run on files of `folder` where none are named."""
    files = (
        f"model.name={model or folder / 'base'}",
        f"data.train={data or folder / 'pairs.jsonl'}",
        f"eval.data={folder / 'dev.tsv'}",
    )
    return resolve_config("sempa", sets=[*files, *sets]).config


def prepared(folder, *sets, data=None):
    """Prepare a run of these settings, on files of `folder` where none are named."""
    config = run_settings(folder, *sets, data=data)
    return prepare_run(config, read_run_data(config))


def metrics_of(folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results_of(folder):
    """What a run's results.json says."""
    return json.loads((folder / "results.json").read_text())


def files_below(folder):
    """Every path below a folder with its content, to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
