"""`sempa-mlx paraphrase`: what it prints and writes, and what it refuses."""

import io
import json

import pytest

from sempa_mlx import Encoder
from sempa_mlx.encoder.paraphrase import Paraphraser, ParaphraseSettings
from tests.adapters import edit_json, write_run
from tests.command import done, files_below, refused, run, training, write_inputs
from tests.tiny import tiny_tokenizer, write_tiny_folder

TEXT = "A cat sleeps on the warm stone."
LINES = (TEXT, "", "Two dogs run on the grass", TEXT)
STDIN = "\n".join(LINES).encode()
FREE = ("--temperature", "1.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base that ends its answers soon, a run of it, another base."""
    folder = write_inputs(tmp_path_factory.mktemp("paraphrase"))
    write_tiny_folder(folder / "other", seed=5)
    ends = list(range(0, len(tiny_tokenizer().get_vocab()), 12))
    edit_json(folder / "base" / "config.json", eos_token_id=ends)
    write_run(folder / "run", folder / "base", scale=0.5)
    return folder


def of_base(folder):
    return ["--model", folder / "base", *FREE]


def found_by(encoder, texts=(TEXT,), **settings):
    """What the library finds, as the document of the command."""
    settings = ParaphraseSettings(**({"temperature": 1.0} | settings))
    return [
        {
            "text": each.text,
            "paraphrases": [{"text": x.text, "similarity": x.similarity} for x in each.paraphrases],
        }
        for each in Paraphraser(encoder, settings).paraphrase(texts)
    ]


def same(document, expected):
    """Compare documents; similarities up to rounding."""
    for each in (*document, *expected):
        for one in each["paraphrases"]:
            one["similarity"] = pytest.approx(one["similarity"], abs=1e-5)
    return [[each["text"], *(one["text"] for one in each["paraphrases"])] for each in document] == [
        [each["text"], *(one["text"] for one in each["paraphrases"])] for each in expected
    ]


def test_a_text_in_other_words(folder, here):
    document = done("paraphrase", TEXT, *of_base(folder), "--json").document
    assert same(document, found_by(Encoder.load(folder / "base")))
    assert len(document[0]["paraphrases"]) == 3
    outcome = done("paraphrase", TEXT, *of_base(folder))
    shown = [
        f"  {one['similarity'].expected:.2f}  {one['text']}" for one in document[0]["paraphrases"]
    ]
    assert outcome.out.split("\n") == ["", TEXT, *shown, ""]
    bare = done("paraphrase", TEXT, *of_base(folder), "--quiet")
    assert bare.out.splitlines() == [one["text"] for one in document[0]["paraphrases"]]
    assert bare.err == ""


def test_the_same_seed_says_the_same(folder, here):
    first, again, other = (
        done("paraphrase", TEXT, *of_base(folder), "--quiet", "--seed", seed).out
        for seed in (4, 4, 5)
    )
    assert first == again != other


def test_each_line_of_stdin(folder, here):
    document = done("paraphrase", "-", *of_base(folder), "-k", 2, "--json", stdin=STDIN).document
    assert [each["text"] for each in document] == list(LINES)
    assert [len(each["paraphrases"]) for each in document] == [2, 0, 2, 2]
    assert same(document, found_by(Encoder.load(folder / "base"), LINES, k=2))
    outcome = done("paraphrase", "-", *of_base(folder), "-k", 2, stdin=STDIN)
    assert [line for line in outcome.out.split("\n") if line in LINES] == [
        "",
        *LINES[:1],
        "",
        *LINES[2:3],
        "",
        TEXT,
        "",
    ]
    bare = done("paraphrase", "-", *of_base(folder), "-k", 2, "--quiet", stdin=STDIN)
    assert len(bare.out.splitlines()) == 6


def test_results_come_as_they_are_found(folder, here, monkeypatch):
    monkeypatch.setattr("sempa_mlx.commands.paraphrase.TOGETHER", 2)
    by_two = done("paraphrase", "-", *of_base(folder), stdin=STDIN)
    assert "paraphrasing 2/4" in by_two.err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert by_two.out == done("paraphrase", "-", *of_base(folder), stdin=STDIN).out


def test_a_file_of_json_lines(folder, here):
    line = ["paraphrase", "-", *of_base(folder), "-o", "deep/a.jsonl"]
    outcome = done(*line, stdin=STDIN)
    rows = [json.loads(row) for row in (here / "deep" / "a.jsonl").read_text().splitlines()]
    assert same(rows, found_by(Encoder.load(folder / "base"), LINES))
    assert outcome.out == "deep/a.jsonl\n"
    assert "9 paraphrases of 4 texts" in outcome.err
    before = files_below(here)
    assert "deep/a.jsonl exists; add --force" in refused(2, *line, stdin=STDIN).err
    assert files_below(here) == before
    document = done(*line, "--force", "-k", 1, "--json", stdin=STDIN).document
    assert document == {"path": "deep/a.jsonl", "texts": 4, "paraphrases": 3, "short": 0}
    assert files_below(here) != before


def test_what_fails_midway_leaves_nothing(folder, here, monkeypatch):
    def broken(_self, _texts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Paraphraser, "paraphrase", broken)
    outcome = refused(4, "paraphrase", TEXT, *of_base(folder), "-o", "a.jsonl")
    assert "cannot write a.jsonl: No space left" in outcome.err
    assert files_below(here) == {}


def test_the_run_at_hand_generates_at_full_strength_and_ranks_at_its_own(folder, here):
    (here / "adapters").symlink_to(folder / "run")
    outcome = done("paraphrase", TEXT, *FREE, "--json")
    trained = Encoder.load(folder / "run")
    assert trained.settings.adapter_scale == 0.5
    assert same(outcome.document, found_by(trained))
    half = done("paraphrase", TEXT, *FREE, "--json", "--adapter-scale", 0.5).document
    assert same(half, found_by(trained, adapter_scale=0.5))
    assert half != outcome.document
    spoken = done("paraphrase", TEXT, *FREE, "--adapter-scale", 0)
    assert "adapters at scale 0.5" in spoken.err
    assert "generating with the adapter at scale 0\n" in spoken.err
    base = done("paraphrase", TEXT, *of_base(folder), "--quiet").out.splitlines()
    assert sorted(base) == sorted(line[8:] for line in spoken.out.splitlines()[2:])


def test_the_prompt_is_the_one_that_the_run_was_trained_with(folder, here):
    sets = ("data.template=P3", "data.system=null")
    done(*training(folder, *sets), "--adapter-path", "adapters", "--iters", 1)
    trained = Encoder.load("adapters")
    document = done("paraphrase", TEXT, *FREE, "--json").document
    assert same(document, found_by(trained, template="P3", system=None))
    document = done("paraphrase", TEXT, *FREE, "--json", "--template", "P4").document
    assert same(document, found_by(trained, template="P4", system=None))


def test_fewer_than_asked_for_are_told(folder, here):
    line = ["--model", folder / "base", "--temperature", 0.01, "-k", 2]
    outcome = done("paraphrase", TEXT, *line, "--quiet")
    assert len(outcome.out.splitlines()) < 2
    assert " of 2 distinct paraphrases (8 draws" in outcome.err
    outcome = done("paraphrase", "-", *line, "--max-tokens", 1, "--json", stdin=STDIN)
    assert "3 texts have fewer than 2 distinct paraphrases (24 draws, 24 without" in outcome.err
    assert [each["paraphrases"] for each in outcome.document] == [[], [], [], []]


def test_a_name_of_a_file_is_a_text(folder, here):
    (here / "notes.txt").write_text("A cat\n")
    outcome = done("paraphrase", "notes.txt", *of_base(folder), "--json")
    assert outcome.document[0]["text"] == "notes.txt"
    assert "notes.txt is taken as a text; to read the file: " in outcome.err
    assert "paraphrase - < notes.txt" in outcome.err


def test_long_texts_are_compared_by_their_beginning(folder, here):
    long = "A cat sleeps. " * 30
    outcome = done("paraphrase", long, *of_base(folder), "--adapter-path", folder / "run")
    assert "longer than 64 tokens and cut at the end" in outcome.err


@pytest.mark.parametrize(
    ("text", "stdin", "code", "message"),
    [
        ("", b"", 2, "the text is empty"),
        (" \t", b"", 2, "the text is empty"),
        ("a\udcff", b"", 2, "the text is not UTF-8"),
        ("-", b"", 3, "stdin: no text"),
        ("-", b"\n \n", 3, "stdin: no text"),
        ("-", b"a cat\n\xff\n", 3, "not UTF-8"),
    ],
)
def test_texts_that_are_none_are_refused(folder, here, text, stdin, code, message):
    outcome = refused(code, "paraphrase", text, "--model", folder / "base", stdin=stdin)
    assert message in outcome.err


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["-k", 0], ["k is 0"]),
        (["-k", -1, "--top-p", 0, "--template", "P6"], ["k is -1", "top_p is 0", "'P6'"]),
        (["--temperature", -1], ["temperature is -1"]),
        (["--temperature", 0], ["temperature 0 always says the same"]),
        (["--top-p", 1.01], ["top_p is 1.01"]),
        (["--max-tokens", 0], ["max_tokens is 0"]),
        (["-o", "a.txt"], ["a.txt: JSON lines are written"]),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_loaded(here, options, messages):
    outcome = refused(2, "paraphrase", TEXT, "--model", "nowhere", *options)
    assert len(outcome.errors) == len(messages)
    for message in messages:
        assert message in outcome.err
    assert files_below(here) == {}


class Terminal(io.TextIOWrapper):
    """A stdin at which a person sits."""

    def isatty(self):
        return True


def test_a_terminal_is_no_stdin(folder, here, monkeypatch):
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    outcome = refused(2, "paraphrase", "-", "--model", folder / "base")
    assert "stdin, which is a terminal" in outcome.err


def test_the_adapter_of_another_base_is_refused(folder, here):
    line = ["--model", folder / "other", "--adapter-path", folder / "run"]
    outcome = refused(1, "paraphrase", TEXT, *line, "-o", "a.jsonl")
    assert "trained on other weights" in outcome.err
    assert files_below(here) == {}


def test_texts_that_do_not_fit_are_named(folder, here):
    edit = folder / "small"
    write_tiny_folder(edit, "qwen3", max_position_embeddings=160)
    stdin = b"A cat\n" + b"cat " * 60 + b"\n\n" + b"dog " * 60
    outcome = refused(3, "paraphrase", "-", "--model", edit, "-o", "a.jsonl", stdin=stdin)
    assert [line.split(": ")[1] for line in outcome.errors] == ["stdin:2", "stdin:4"]
    assert files_below(here) == {}


def test_help_shows_both_examples_and_says_what_a_path_is():
    shown = " ".join(run("paraphrase", "--help").out.split())
    assert 'sempa-mlx paraphrase "The flight was cancelled because of fog." -k 5' in shown
    assert "sempa-mlx paraphrase - -o notes.jsonl < notes.txt" in shown
    assert "also if it is the name of a file" in shown
