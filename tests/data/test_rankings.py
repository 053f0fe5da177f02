from sempa_mlx.data.rankings import ranked_sentences, unranked
from sempa_mlx.data.records import PreferenceRecord


def record(anchor, *candidates):
    return PreferenceRecord("prompt", candidates, 1, anchor)


def test_sentences_are_numbered_once():
    found = ranked_sentences([record("a", "b", "c"), record("b", "d", "a")], 10)
    assert found.texts == ("a", "b", "c", "d")
    assert found.rankings == ((0, 1, 2), (1, 3, 0))


def test_rows_that_would_be_too_many_are_left_out_whole():
    rows = [record("a", "b", "c"), record("a", "d", "e"), record("a", "b", "c")]
    found = ranked_sentences(rows, 4)
    assert found.texts == ("a", "b", "c")
    assert found.rankings == ((0, 1, 2),)
    assert len(ranked_sentences(rows, 5).rankings) == 3


def test_lines_are_taken_once_and_blank_ones_not():
    found = unranked(["a", " ", "b", "a", "", "c"], 2)
    assert found.texts == ("a", "b")
    assert found.rankings == ()
