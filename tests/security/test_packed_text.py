"""Packed files that blow up, and lines without an end."""

import gzip
import tracemalloc

import pytest

from sempa_mlx.data import readers
from sempa_mlx.data.readers import read_csv, read_jsonl, scan_lines
from sempa_mlx.errors import DataError

UNMEASURED = pytest.mark.unmeasured


@pytest.fixture
def small(monkeypatch):
    """The rules at a thousandth of their size."""
    monkeypatch.setattr(readers, "MAX_LINE", 64 * 2**10)
    return readers.MAX_LINE


def test_the_rules_are_those_of_the_documentation():
    assert (readers.MAX_LINE, readers.MAX_RATIO) == (64 * 2**20, 200)
    assert "64 MiB" in readers.__doc__
    assert "200 times" in readers.__doc__


@pytest.mark.parametrize(
    "read", [scan_lines, *(pytest.param(read, marks=UNMEASURED) for read in (read_jsonl, read_csv))]
)
def test_a_packed_bomb_of_lines_is_refused(tmp_path, small, read):
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 2_000_000))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size") as error:
        for _ in read(path):
            pass
    assert error.value.problems[0].place == str(path)


def test_a_packed_bomb_of_one_line_is_refused_before_it_is_in_memory(tmp_path, small):
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(bytes(64 * 2**20)))
    tracemalloc.start()
    with pytest.raises(DataError, match="a line of more than 65,536 bytes"):
        list(scan_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_file_without_line_ends_is_refused(tmp_path, small):
    path = tmp_path / "image.txt"
    path.write_bytes(b"a" * (small + 1))
    with pytest.raises(DataError, match="not a text file"):
        list(scan_lines(path))
    path.write_bytes(b"a" * (small - 1) + b"\n" + b"b" * small)
    assert [len(line.text) for line in scan_lines(path)] == [small - 1, small]


def test_text_that_packs_well_is_read(tmp_path, small):
    """A ratio within the rule, and any ratio of a small file."""
    path = tmp_path / "rows.txt.gz"
    lines = [f"{number % 977} dogs run on the grass" for number in range(40_000)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert [line.text for line in scan_lines(path)] == lines
    path.write_bytes(gzip.compress(b"\n" * small))
    assert small / path.stat().st_size > readers.MAX_RATIO
    assert len(list(scan_lines(path))) == small


def test_a_plain_file_is_bounded_by_nothing_but_its_lines(tmp_path, small):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"a\n" * small)
    assert sum(1 for _ in scan_lines(path)) == small
