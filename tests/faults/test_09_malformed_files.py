"""Fault 9: malformed lines, byte order marks, CRLF, NUL, bytes that are no UTF-8, a line of 10 MB.

Readers and rows: tests/data/test_readers.py, tests/data/test_preferences.py.
"""

import codecs
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import done, refused, run, training

ROW = {"anchor": "A cat sleeps.", "entailment": "A cat is asleep.", "contradiction": "It runs."}
LINE = json.dumps(ROW).encode()


def other(number):
    return json.dumps(ROW | {"anchor": f"Cat {number} sleeps."}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"anchor": ', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (LINE + b"\0", "a NUL byte"),
        (b'{"anchor": "\xff"}', "not UTF-8"),
        (LINE.replace(b"A cat sleeps.", b"\\ud800"), "half of a surrogate pair"),
    ],
    ids=["cut", "list", "nul", "no utf-8", "surrogate"],
)
def test_a_bad_line_is_named_beside_the_others(space, here, line, reason):
    (here / "rows.jsonl").write_bytes(b"\n".join([LINE, line, other(2), line, b""]))
    outcome = run("data", "check", "rows.jsonl")
    assert outcome.code == 3
    assert [error.split(": ")[1] for error in outcome.errors] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert all(reason in error for error in outcome.errors)
    assert "4 rows, 2 kept" in outcome.out
    refused(3, *training(space, data=here / "rows.jsonl"), "--adapter-path", "run")
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + LINE + b"\n" + other(2) + b"\n",
        LINE + b"\r\n" + other(2) + b"\r\n",
        LINE + b"\n" + other(2),
        LINE + b"\n" + json.dumps(ROW | {"anchor": "word " * 2_000_000}).encode(),
    ],
    ids=["byte order mark", "crlf", "no last line feed", "10 MB"],
)
def test_what_is_unusual_and_sound_is_read(here, content):
    (here / "rows.jsonl").write_bytes(content)
    outcome = done("data", "check", "rows.jsonl", "--json")
    assert (outcome.document["rows"], outcome.document["kept"]) == (2, 2)


pieces = st.sampled_from(
    [
        LINE,
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b'{"anchor":',
        b'"a"',
        b",",
        b"}",
        b"[]",
        b"null",
        b"1e999",
        b"\\ud800",
        b"sent0,sent1,hard_neg\n",
        b'"',
    ]
)


@pytest.mark.unmeasured
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(pieces | st.binary(max_size=6), max_size=12).map(b"".join),
    name=st.sampled_from(["rows.jsonl", "rows.csv", "rows.jsonl.gz"]),
)
def test_any_bytes_are_rows_or_faults_and_never_a_bug(here, content, name):
    (here / name).write_bytes(content)
    outcome = run("data", "check", name)
    assert outcome.code in (0, 3)
    assert "this is a bug" not in outcome.err
    assert all(error.startswith(f"error: {name}") for error in outcome.errors)
    assert bool(outcome.errors) == (outcome.code == 3)
