"""`--data hub --tasks` with further sets of the Hub, on a cache that holds them."""

import json

import pytest
from huggingface_hub import constants

from sempa_mlx.data.hub_sts import SETS
from tests.command import done, refused, write_triplets
from tests.tiny import write_tiny_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model."""
    folder = tmp_path_factory.mktemp("hub-sts") / "base"
    write_tiny_folder(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache with STS17 and BIOSSES, and SentEval's STS-B beside it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, subsets in (("STS17", ("en-en", "en-de")), ("BIOSSES", ("en",))):
        repo, revision, _ = SETS[name]
        folder = tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}" / "snapshots" / revision
        folder.mkdir(parents=True)
        rows = [
            {
                "sentence1": f"A man has {number} books.",
                "sentence2": f"A woman  reads {number * 3} pages.",
                "score": number % 6,
                "lang": subset,
            }
            for subset in subsets
            for number in range(len(subset) + 3)
        ]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stsb = tmp_path / "sempa-mlx" / "senteval-x" / "STS" / "STSBenchmark"
    stsb.mkdir(parents=True)
    lines = [f"a\tb\t2012\t{n}\t{n % 4}.5\tthe cat {n}\ta dog {n * 2}\n" for n in range(9)]
    (stsb / "sts-test.csv").write_text("".join(lines))
    return tmp_path


def test_sets_of_the_hub_are_tasks_like_others(cache, base):
    arguments = ("eval", "sts", "--model", base, "--tasks", "STS17/en-de,BIOSSES")
    document = done("--json", *arguments).document
    assert document["protocol"] == "mteb"
    assert document["pairs"] == {"STS17/en-de": 8, "BIOSSES": 5}
    assert document["origins"] == {
        "STS17/en-de": f"mteb/sts17-crosslingual-sts@{SETS['STS17'].revision}",
        "BIOSSES": f"mteb/biosses-sts@{SETS['BIOSSES'].revision}",
    }
    assert document["results"][0]["scores"].keys() == {"STS17/en-de", "BIOSSES"}
    shown = done(*arguments).out
    assert "protocol mteb (raw text)" in shown
    assert f"mteb/biosses-sts@{SETS['BIOSSES'].revision}" in shown


def test_each_task_keeps_its_protocol_beside_the_seven_sets(cache, base):
    arguments = ("eval", "sts", "--model", base, "--tasks", "STS17/en-en,STSB,BIOSSES")
    document = done("--json", *arguments).document
    assert document["protocol"] == document["results"][0]["protocol"] == "mixed"
    assert list(document["protocols"].items()) == [
        ("STS17/en-en", "mteb"),
        ("STSB", "senteval"),
        ("BIOSSES", "mteb"),
    ]
    shown = done(*arguments).out
    assert "protocol mteb (raw text): STS17/en-en, BIOSSES\n" in shown
    assert "protocol senteval (SentEval text): STSB\n" in shown


def test_leaks_are_looked_for_in_sets_of_the_hub_as_well(cache, tmp_path):
    train = write_triplets(tmp_path / "train.jsonl", 3)
    with train.open("a") as more:
        row = {"anchor": "A man has 4 books!", "entailment": "x", "contradiction": "y"}
        more.write(json.dumps(row) + "\n")
    document = done("--json", "data", "leaks", train, "--tasks", "STS17/en-en").document
    (task,) = document["tasks"]
    assert (task["task"], task["protocol"]) == ("STS17/en-en", "mteb")
    assert task["levels"]["normalised"]["lines"] == [4]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--tasks", "STS17/en-dx"), "STS17 has no subset 'en-dx'"),
        (("--tasks", "STSB,STS71"), "unknown STS task 'STS71'"),
        (("--tasks", "BIOSSES", "--protocol", "senteval"), "BIOSSES is raw text, protocol mteb"),
        (("--tasks", "STS17/en-de", "--data", "."), "STS17/en-de is read from the Hub"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(cache, base, options, what):
    outcome = refused(2, "eval", "sts", "--model", base, *options)
    assert what in outcome.err


def test_a_subset_that_the_cache_lacks_needs_the_hub(cache, base):
    outcome = refused(3, "eval", "sts", "--model", base, "--tasks", "STS17/ko-ko")
    assert "the Hugging Face Hub cannot be reached and STS17" in outcome.err
