import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.data.records import StsPair
from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.errors import DataError

NUMBER = "the score is not a finite number"
OBJECTS = (
    '{"sentence1": "a \\"b\\", c", "sentence2": "d", "score": 4.5}\n\n'
    '{"sentence1": "e  ", "sentence2": "f", "score": "-1.0", "id": null}\n'
)
TWO = (StsPair(4.5, 'a "b", c', "d"), StsPair(-1.0, "e  ", "f"))


def put(path, text):
    path.write_bytes(text.encode())
    return path


def problems_of(path):
    with pytest.raises(DataError) as caught:
        read_sts_file(path)
    return caught.value.problems


def faults_of(path):
    return [str(problem) for problem in problems_of(path)]


def test_pairs_are_split_on_tabs_and_line_feeds_only(tmp_path):
    text = '4.400\t He said "no\t"yes" \r\n0\tNA\tnull\u2028x\n-1e-1\ta\tb'
    assert read_sts_file(put(tmp_path / "a.tsv", text)) == (
        StsPair(4.4, ' He said "no', '"yes" '),
        StsPair(0.0, "NA", "null\u2028x"),
        StsPair(-0.1, "a", "b"),
    )


def test_all_faults_of_a_pair_file_are_told(tmp_path):
    lines = ["1\ta\tb", "1\ta", "1\ta\tb\tc", "", "x\ta\tb", "nan\t \t", "1_0\ta\tb", "1e999\ta\tb"]
    path = put(tmp_path / "a.tsv", "\n".join(lines))
    path.write_bytes(path.read_bytes() + b"\n1\t\xff\tb\n")
    assert faults_of(path) == [
        f"{path}:2: 2 columns instead of 3",
        f"{path}:3: 4 columns instead of 3",
        f"{path}:4: 1 columns instead of 3",
        f"{path}:5: {NUMBER}",
        f"{path}:6: {NUMBER}",
        f"{path}:6: sentence 1 holds only blanks",
        f"{path}:6: sentence 2 is empty",
        f"{path}:7: {NUMBER}",
        f"{path}:8: {NUMBER}",
        f"{path}:9: not UTF-8",
    ]


def test_a_file_without_pairs_is_a_fault(tmp_path):
    path = put(tmp_path / "a.tsv", "")
    assert faults_of(path) == [f"{path}: no pairs"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=80) | st.text("0123.\t\nab ", max_size=60).map(str.encode))
def test_any_bytes_give_pairs_or_a_data_error(tmp_path, content):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    try:
        pairs = read_sts_file(path)
    except DataError as error:
        assert all(problem.place.startswith(str(path)) for problem in error.problems)  # noqa: PT017
    else:
        assert len(pairs) == len(content.removesuffix(b"\n").split(b"\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", '4.5\ta "b", c\td\n-1\te  \tf\n'),
        ("a.txt", '4.5\ta "b", c\td\n-1\te  \tf\n'),
        ("pairs", 'sentence2\tscore\tid\tsentence1\nd\t4.5\t7\ta "b", c\nf\t-1\t\te  \n'),
        ("a.csv", 'score,sentence1,sentence2\n4.5,"a ""b"", c",d\n\n-1,e  ,f\n'),
        ("a.CSV", 'genre,sentence1,sentence2,score\nx,"a ""b"", c",d,4.5\ny,e  ,f, -1 \n'),
        ("a.csv", 'x\ty\tz\t1\t4.5\ta "b", c\td\nx\ty\tz\t1\t-1\te  \tf\tlicence\n'),
        ("a.jsonl", OBJECTS),
    ],
)
def test_every_form_gives_the_same_pairs(tmp_path, name, text):
    assert read_sts_file(put(tmp_path / name, text)) == TWO


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "sentence1\tsentence2\tlabel\na\tb\t1\n"),
        ("a.csv", "sentence1,sentence2,label\na,b,1\nc,d,2\n"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 1}\n' * 3),
    ],
)
def test_a_score_that_is_not_there_is_told_once_with_what_is(tmp_path, name, text):
    path = put(tmp_path / name, text)
    (problem,) = problems_of(path)
    assert problem.place.startswith(str(path))
    assert problem.what == "no `score`"
    assert problem.evidence == "there are: sentence1, sentence2, label"
    assert "score, sentence1, sentence2" in problem.fix


def test_a_csv_file_without_a_header_is_told_what_it_lacks(tmp_path):
    (told,) = faults_of(put(tmp_path / "a.csv", "4.5,a,b\n1,c,d\n"))
    assert told.endswith("no `score` and no `sentence1` and no `sentence2`")


def test_a_key_that_one_row_lacks_is_told_with_its_line(tmp_path):
    rows = [{"score": 1, "sentence1": "a", "sentence2": "b"} for _ in range(3)]
    del rows[1]["score"]
    path = put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert faults_of(path) == [f"{path}:2: no `score`"]


@pytest.mark.parametrize(
    "score",
    ["NaN", "Infinity", "-Infinity", "null", "true", '"four"', '""', "[1]", "1" + "0" * 400],
)
def test_a_score_that_is_no_number_is_a_fault_in_json(tmp_path, score):
    path = put(tmp_path / "a.jsonl", f'{{"score": {score}, "sentence1": "a", "sentence2": "b"}}\n')
    (problem,) = problems_of(path)
    assert str(problem) == f"{path}:1: {NUMBER}"
    assert problem.evidence or score == '""'


@pytest.mark.parametrize("score", ["nan", "inf", "", "four", "4,5"])
def test_a_score_that_is_no_number_is_a_fault_in_csv(tmp_path, score):
    path = put(tmp_path / "a.csv", f'score,sentence1,sentence2\n"{score}",a,b\n1,c,d\n')
    assert faults_of(path) == [f"{path}:2: {NUMBER}"]


def test_faults_of_all_rows_are_told_in_named_forms(tmp_path):
    path = put(tmp_path / "a.csv", 'sentence1,score,sentence2\n" ",1,b\na,x,\nc,2\nd,3,e\n')
    assert faults_of(path) == [
        f"{path}:2: sentence 1 holds only blanks",
        f"{path}:3: {NUMBER}",
        f"{path}:3: sentence 2 is empty",
        f"{path}:4: 2 fields instead of 3",
    ]
    path = put(tmp_path / "a.jsonl", '{"score": 1, "sentence1": 3, "sentence2": null}\nnot json\n')
    assert faults_of(path) == [
        f"{path}:1: sentence 1 has type int, not text",
        f"{path}:1: sentence 2 is null",
        f"{path}:2: not JSON: Expecting value at column 1",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
@pytest.mark.parametrize("text", ["", "score\tsentence1\tsentence2", "score,sentence1,sentence2\n"])
def test_a_file_that_holds_no_pair_is_a_fault(tmp_path, name, text):
    assert len(faults_of(put(tmp_path / name, text))) == 1


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.tsv"):
        assert faults_of(tmp_path / name) == [f"{tmp_path / name}: no such file"]
