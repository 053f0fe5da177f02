import csv
import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.data.readers import (
    Faults,
    Line,
    has_suffix,
    read_csv,
    read_jsonl,
    read_lines,
    scan_lines,
    text_fault,
)
from sempa_mlx.errors import DataError, Problem

reuse_tmp_path = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_end_at_line_feeds_only(tmp_path, name):
    path = write(tmp_path, name, "\ufeffone\r\ntwo\u2028still\x0btwo\x85\n\nfour\rfour")
    assert list(read_lines(path)) == [
        Line(1, "one"),
        Line(2, "two\u2028still\x0btwo\x85"),
        Line(3, ""),
        Line(4, "four\rfour"),
    ]


def test_a_byte_order_mark_counts_only_at_the_start(tmp_path):
    path = write(tmp_path, "a.txt", "\ufeff\ufeffx\n\ufeffy\n")
    assert [line.text for line in read_lines(path)] == ["\ufeffx", "\ufeffy"]


def test_an_empty_file_has_no_lines(tmp_path):
    assert list(read_lines(write(tmp_path, "a.txt", b""))) == []


def test_faulty_lines_are_told_beside_the_good_ones(tmp_path):
    path = write(tmp_path, "a.txt", b"good\nb\xffd\nnu\0l\nlast\n")
    good, latin, nul, last = scan_lines(path)
    assert (good, last) == (Line(1, "good"), Line(4, "last"))
    assert str(latin) == f"{path}:2: not UTF-8"
    assert latin.evidence == "byte 2 is 0xff"
    assert nul.place == f"{path}:3"
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        list(read_lines(path))


def test_utf16_is_told_once(tmp_path):
    path = write(tmp_path, "a.txt", "one\ntwo\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16") as caught:
        list(scan_lines(path))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "content",
    [b"not gzip at all", gzip.compress(b"x" * 9999, mtime=0)[:-20]],
    ids=["no-gzip", "cut"],
)
def test_a_broken_gzip_file_is_told(tmp_path, content):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="broken gzip file"):
        list(read_lines(path))


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, "train.jsonl", "{}\n")
    with pytest.raises(DataError, match="no such file") as caught:
        list(read_lines(tmp_path / "trian.jsonl"))
    assert "train.jsonl" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="no such file"):
        list(read_lines(tmp_path / "nowhere" / "x"))


def test_a_folder_and_a_senseless_path_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        list(read_lines(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path / "nul\0byte"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path / ("x" * 400)))


def test_json_objects_come_with_their_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n\n  \n{"b": "\\ud83d\\ude00"}\n')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"b": "😀"})]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"a": 1', "not JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"m": [{"role": "x", "role": "y"}]}', "'role' stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "not usable JSON"),
        ('{"a": ' + "[" * 100_000, "JSON"),
    ],
)
def test_a_bad_object_is_a_problem_of_its_line(tmp_path, line, what):
    path = write(tmp_path, "a.jsonl", f'{{"first": 1}}\n{line}\n{{"last": 1}}\n')
    first, problem, last = read_jsonl(path)
    assert (first[0], last[0]) == (1, 3)
    assert problem.place == f"{path}:2"
    assert what in problem.what
    assert problem.fix


def test_a_long_line_is_read(tmp_path):
    text = "x" * 10_000_000
    ((number, row),) = read_jsonl(write(tmp_path, "a.jsonl", json.dumps({"a": text})))
    assert (number, row["a"] == text) == (1, True)


def test_csv_rows_carry_the_line_they_start_on(tmp_path):
    text = '\ufeffa,b\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n3,4 "bare"\r\n'
    assert list(read_csv(write(tmp_path, "a.csv", text))) == [
        (2, {"a": "1", "b": 'two\nlines, "quoted"'}),
        (5, {"a": "3", "b": '4 "bare"'}),
    ]


def test_a_field_of_a_csv_may_be_as_long_as_a_line(tmp_path):
    long = "x, " * 100_000
    assert list(read_csv(write(tmp_path, "a.csv", f'a,b\n1,"{long}"\n'))) == [
        (2, {"a": "1", "b": long})
    ]


def test_csv_faults_are_told_row_by_row(tmp_path):
    text = b'a,b\n1,2\n1,2,3\n1\n"x"y,2\nb\xffd,2\n7,8\n"open,9\n'
    path = write(tmp_path, "a.csv", text)
    rows = list(read_csv(path))
    assert [row for row in rows if not isinstance(row, Problem)] == [
        (2, {"a": "1", "b": "2"}),
        (7, {"a": "7", "b": "8"}),
    ]
    problems = {
        each.place.rpartition(":")[2]: each.what for each in rows if isinstance(each, Problem)
    }
    assert problems.keys() == {"3", "4", "5", "6", "8"}
    assert problems["3"] == "3 fields instead of 2"
    assert "unexpected end of data" in problems["8"]


def test_a_csv_with_equal_column_names_is_refused(tmp_path):
    (problem,) = read_csv(write(tmp_path, "a.csv", "a,a\n1,2\n"))
    assert "twice" in problem.what


csv_cells = st.text(
    st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=12
)


@reuse_tmp_path
@given(st.lists(st.tuples(csv_cells, csv_cells), max_size=6))
def test_what_csv_writes_is_read_back(tmp_path, rows):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([("left", "right"), *rows])
    read = [tuple(row.values()) for _, row in read_csv(path)]
    assert read == rows


@reuse_tmp_path
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3), max_size=5))
def test_what_json_writes_is_read_back(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row for _, row in read_jsonl(path)] == rows


@reuse_tmp_path
@given(st.binary(max_size=200), st.sampled_from([scan_lines, read_jsonl, read_csv]))
def test_any_bytes_give_rows_or_problems(tmp_path, content, read):
    path = tmp_path / "any"
    path.write_bytes(content)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        with pytest.raises(DataError, match="UTF-16"):
            list(read(path))
        return
    for item in read(path):
        if isinstance(item, Problem):
            assert item.place.startswith(f"{path}:")
        else:
            number = item.number if isinstance(item, Line) else item[0]
            assert 1 <= number <= content.count(b"\n") + 1


def test_faults_keep_the_first_hundred_and_count_the_rest():
    faults = Faults()
    faults.raise_if_any()
    for number in range(250):
        faults.add(Problem(f"fault {number}"))
    problems = faults.problems()
    assert len(problems) == 101
    assert problems[99].what == "fault 99"
    assert problems[100].what == "150 more faults, not listed"
    with pytest.raises(DataError) as caught:
        faults.raise_if_any()
    assert caught.value.problems == problems


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("x", None),
        ("😀", None),
        ("", "is empty"),
        (" \u00a0\n", "holds only blanks"),
        (None, "is null"),
        (3, "has type int, not text"),
        (["x"], "has type list, not text"),
        ("half \ud83d pair", "holds half of a surrogate pair, which is no character"),
    ],
)
def test_what_is_no_text(value, wrong):
    assert text_fault(value) == wrong


def test_suffixes_count_without_gz_and_case(tmp_path):
    assert has_suffix(tmp_path / "a.JSONL.gz", [".jsonl"])
    assert not has_suffix(tmp_path / "a.gz", [".jsonl", ".csv"])
