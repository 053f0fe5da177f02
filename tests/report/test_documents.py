"""Results files: each kind is recognised, its numbers are shown, anything else is refused."""

import json

import pytest

from sempa_mlx.errors import DataError
from sempa_mlx.report.document_sections import document_tables
from sempa_mlx.report.documents import read_documents
from sempa_mlx.report.markup import element
from tests.report.pages import ET, tables

ENDS = {"low": 60.0, "high": 66.0, "undefined_resamples": 0}
STS = {
    "protocol": "senteval",
    "pairs": {"STSB": 1379, "SICKR": 4927},
    "results": [
        {
            "system": "base prompteol",
            "scores": {"STSB": 60.004, "SICKR": None},
            "average": None,
            "intervals": {"STSB": ENDS, "SICKR": {"low": None, "high": None}},
            "average_interval": {"low": None, "high": None},
        },
        {
            "system": "run prompteol",
            "scores": {"STSB": 66.17, "SICKR": 66.5},
            "average": 66.34,
            "difference": {
                "from": "base prompteol",
                "scores": {
                    "STSB": {"score": 6.166, "interval": {"low": 2.0, "high": 9.0}, "p": 0.001},
                    "SICKR": {"score": None, "interval": {"low": None, "high": None}, "p": None},
                },
                "average": {"score": None, "interval": {"low": None, "high": None}, "p": None},
            },
        },
    ],
}
TEXT = {"window": 512, "text": "/data/wiki.txt", "num_tokens": 600, "num_scored": 598}
GENERATION = {
    "results": [
        {"system": "base", "perplexity": 30.0, "standard_error": 1.5, "kl": 0.0} | TEXT,
        {
            "system": "run x0.5",
            "perplexity": 33.0,
            "standard_error": None,
            "kl": 0.05,
            "kl_standard_error": 0.001,
            "figures": [
                {"task": "mmlu", "metric": "acc", "value": 0.25, "standard_error": 0.01},
                {"task": "gsm8k", "metric": "strict", "value": None, "standard_error": None},
            ],
        }
        | TEXT,
    ]
}
GEOMETRY = {
    "data": "STS-B",
    "texts": 1200,
    "results": [
        {
            "system": "base",
            "alignment": 0.25,
            "uniformity": -1.5,
            "average_cosine": 0.8,
            "partition_isotropy": 0.5,
            "iso_score": None,
            "effective_rank": 80.0,
            "spearman": 70.0,
        }
    ],
}
FRONTIER = {
    "adapter": "/runs/mine",
    "results": [
        {"adapter_scale": 0, "spearman": 70.0, "perplexity": 30.0, "kl": 0.0, "on_frontier": True},
        {"adapter_scale": 1, "spearman": None, "perplexity": 31.0, "kl": 0.1, "on_frontier": False},
    ],
}


def written(folder, content, name="results.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def shown(folder, kind, *contents):
    paths = [written(folder, each, f"{index}.json") for index, each in enumerate(contents)]
    found = read_documents(paths)
    assert [each.kind for each in found] == [kind] * len(contents)
    return tables(ET.fromstring(element("div", {}, *document_tables(kind, found))))


def test_sts_scores_stand_above_their_intervals(tmp_path):
    found = shown(tmp_path, "sts", STS)
    table = found["STS, Spearman × 100, protocol senteval (SentEval text)"]
    assert table == [
        ["", "STSB", "SICKR", "avg"],
        ["base prompteol", "60.0060.0 to 66.0", "undefinedundefined", "undefinedundefined"],
        ["run prompteol", "66.17", "66.50", "66.34"],
    ]
    gains = found["run prompteol: gain over base prompteol on the same pairs"]
    assert gains[1] == ["STSB", "+6.17", "+2.00 to +9.00", "0.001"]
    assert gains[2] == ["SICKR", "undefined", "undefined", "undefined"]


def test_sts_results_on_the_same_pairs_share_a_table(tmp_path):
    other = STS | {"pairs": {"STSB": 1379, "SICKR": 9927}, "protocol": "mteb"}
    second = STS | {"results": [STS["results"][1] | {"system": "again"}]}
    found = shown(tmp_path, "sts", STS, other, second)
    same = found["STS, Spearman × 100, protocol senteval (SentEval text)"]
    assert [row[0] for row in same[1:]] == ["base prompteol", "run prompteol", "again"]
    assert "STS, Spearman × 100, protocol mteb (raw text)" in found


def test_generation_is_compared_with_the_base(tmp_path):
    found = shown(tmp_path, "generation", GENERATION)["Base and adapter as generators"]
    assert found == [
        ["", "perplexity", "× base", "KL to base, nats", "mmlu", "gsm8k strict"],
        ["base", "30.00 ± 1.50", "1.000", "0.0000", "–", "–"],
        ["run x0.5", "33.00", "1.100", "0.0500 ± 0.0010", "25.0 ± 1.0", "undefined"],
    ]


def test_texts_that_differ_are_not_compared(tmp_path):
    rows = GENERATION["results"]
    changed = {"results": [rows[0], rows[1] | {"text": "other.txt"}]}
    assert shown(tmp_path, "generation", changed)["Base and adapter as generators"][2][2] == "–"


def test_geometry_has_a_row_a_system(tmp_path):
    found = shown(tmp_path, "geometry", GEOMETRY)["Geometry of 1,200 sentences, STS-B"]
    assert found[1] == [
        *("base", "0.250", "\u22121.500", "0.800", "0.500", "undefined", "80.0", "70.00")
    ]


def test_the_frontier_has_a_row_a_scale(tmp_path):
    found = shown(tmp_path, "frontier", FRONTIER)["What the scale of mine gains and costs"]
    assert found[1:] == [
        ["0 *", "70.00", "+0.00", "30.00", "0.0000"],
        ["1", "undefined", "undefined", "31.00", "0.1000"],
    ]


REFUSED = {
    "no JSON": "{",
    "a list": [],
    "no results": {"protocol": "senteval"},
    "no rows": {"results": []},
    "rows that are no objects": {"results": [1]},
    "rows of tokens": {"results": [{"system": "base", "exact": {}, "shown": []}]},
    "scores that are text": STS
    | {"results": [{"system": "a", "scores": {"x": "1"}, "average": 1}]},
    "no pairs": {"results": STS["results"]},
    "compressions": STS | {"coders": {}},
    "a name that is none": {"results": [GENERATION["results"][0] | {"system": 3}]},
    "figures that are none": {"results": [{"system": "a", "figures": [3]}]},
    "truth for a number": {"results": [{"system": "a", "perplexity": True}]},
    "a run's results": {"metric": "spearman", "steps": 3},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_of_no_kind_is_refused(tmp_path, case):
    with pytest.raises(DataError) as error:
        read_documents([written(tmp_path, REFUSED[case])])
    (problem,) = error.value.problems
    assert problem.place == str(tmp_path / "results.json")
    assert "`eval sts`, `eval generation`, `eval geometry` or `eval frontier`" in problem.fix
    assert error.value.state == "no report was written"


def test_every_wrong_file_is_told(tmp_path):
    with pytest.raises(DataError) as error:
        read_documents([tmp_path / "nowhere", written(tmp_path, STS), written(tmp_path, "x", "b")])
    assert [problem.what for problem in error.value.problems] == [
        "cannot be read: No such file or directory",
        "not JSON",
    ]


def test_a_scores_table_takes_systems_that_lack_a_task(tmp_path):
    short = STS["results"][1] | {"scores": {"STSB": 1.0}}
    table = shown(tmp_path, "sts", STS | {"results": [short]})
    (rows,) = (rows for name, rows in table.items() if name.startswith("STS"))
    assert rows[1][1:3] == ["1.00", "undefined"]


def test_a_number_beyond_all_bounds_is_undefined(tmp_path):
    row = STS["results"][0] | {"average": 10**400}
    table = shown(tmp_path, "sts", STS | {"results": [row]})
    (rows,) = (rows for name, rows in table.items() if name.startswith("STS"))
    assert rows[1][-1].startswith("undefined")
