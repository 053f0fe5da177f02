import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.data.preferences import FAULTY, check_preferences, read_preferences
from sempa_mlx.data.records import Message, PreferenceRecord
from sempa_mlx.data.templates import SYSTEM_PROMPT, paraphrase_prompt
from sempa_mlx.errors import DataError, UsageError

SYSTEM = Message("system", SYSTEM_PROMPT)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def triplet(anchor="a b c", good="good one", bad="bad", **more):
    return {"anchor": anchor, "entailment": good, "contradiction": bad, **more}


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        data = "".join(line + "\n" for line in lines).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def faults_of(path, **options):
    with pytest.raises(DataError) as caught:
        read_preferences(path, **options)
    assert caught.value.exit_code == 3
    assert caught.value.state == "nothing was started"
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.ndjson"])
def test_a_triplet_becomes_a_paraphrase_request(jsonl, name):
    anchor = ' He said "S" {0}\nand left '
    data = read_preferences(jsonl(triplet(anchor, " good ", "bad\n"), name=name))
    prompt = (SYSTEM, Message("user", paraphrase_prompt("P1", anchor)))
    assert data.records == (PreferenceRecord(prompt, ("good", "bad"), 1, anchor),)
    assert anchor in data.records[0].prompt[1].content


def test_template_and_system_text_can_be_chosen(jsonl):
    path = jsonl(triplet("x"))
    (record,) = read_preferences(path, template="P4", system=None).records
    assert record.prompt == (Message("user", paraphrase_prompt("P4", "x")),)
    (record,) = read_preferences(path, system="Be brief").records
    assert record.prompt[0] == Message("system", "Be brief")


def test_a_simcse_csv_is_read(tmp_path):
    path = tmp_path / "nli.csv"
    path.write_text('sent0,sent1,hard_neg\n"a ""b"",\nc",good,bad\nn/a,null,NA\n')
    data = read_preferences(path, system=None)
    assert [record.line for record in data.records] == [2, 4]
    assert data.records[0].prompt[0].content == paraphrase_prompt("P1", 'a "b",\nc')
    assert data.records[1].candidates == ("null", "NA")
    assert data.report.format == "simcse"


CHAT = (Message("system", "be kind"), Message("user", "why?"))


@pytest.mark.parametrize(
    ("row", "prompt", "form"),
    [
        ({"prompt": " Why:", "chosen": " yes ", "rejected": "no"}, " Why:", "trl"),
        (
            {"prompt": "why?", "system": "be kind", "chosen": " yes ", "rejected": "no"},
            CHAT,
            "trl",
        ),
        (
            {
                "prompt": [{"role": "system", "content": "be kind"}, user("why?")],
                "chosen": [assistant(" yes ")],
                "rejected": [assistant("no")],
            },
            CHAT,
            "trl",
        ),
        (
            {"prompt": [user("why?")], "chosen": " yes ", "rejected": "no"},
            CHAT[1:],
            "trl",
        ),
        *(
            ({"prompt": prompt, "system": "", "chosen": " yes ", "rejected": "no"}, read, "trl")
            for prompt, read in (("why?", "why?"), ([user("why?")], CHAT[1:]))
        ),
        (
            {
                "prompt": [{"role": "system", "content": "be kind"}, user("why?")],
                "system": "be kind",
                "chosen": " yes ",
                "rejected": "no",
            },
            CHAT,
            "trl",
        ),
        (
            {"prompt": [user("why?")], "system": "be kind", "chosen": " yes ", "rejected": "no"},
            CHAT,
            "trl",
        ),
        (
            {
                "system": "be kind",
                "chosen": [user("why?"), assistant(" yes ")],
                "rejected": [user("why?"), assistant("no")],
            },
            CHAT,
            "trl",
        ),
        (
            {
                "chosen": [user("why?"), assistant(" yes ")],
                "rejected": [user("why?"), assistant("no")],
            },
            CHAT[1:],
            "trl",
        ),
        (
            {
                "prompt": "why?",
                "chosen": [user("why?"), assistant(" yes ")],
                "rejected": [user("why?"), assistant("no")],
            },
            CHAT[1:],
            "trl",
        ),
        (
            {
                "prompt": [user("why?")],
                "chosen": [user("why?"), assistant(" yes ")],
                "rejected": [user("why?"), assistant("no")],
            },
            CHAT[1:],
            "trl",
        ),
        (
            {"messages": [user("why?"), assistant(" yes ")], "rejected_response": "no"},
            CHAT[1:],
            "ms-swift",
        ),
    ],
)
def test_chat_rows_stay_as_they_are(jsonl, row, prompt, form):
    data = read_preferences(jsonl(row))
    anchor = prompt if isinstance(prompt, str) else prompt[-1].content
    assert data.records == (PreferenceRecord(prompt, (" yes ", "no"), 1, anchor),)
    assert data.report.format == form


def test_a_longer_history_is_part_of_the_prompt(jsonl):
    history = [user("1"), assistant("2"), user("3")]
    (record,) = read_preferences(
        jsonl({"chosen": [*history, assistant("yes")], "rejected": [*history, assistant("no")]})
    ).records
    assert [turn.content for turn in record.prompt] == ["1", "2", "3"]
    assert record.candidates == ("yes", "no")


def test_three_candidates_are_ranked_and_need_a_neutral(jsonl):
    path = jsonl(
        triplet(neutral=" so so "),
        triplet("no neutral"),
        triplet("null neutral", neutral=None),
        triplet("blank neutral", neutral=" "),
        triplet("equal", neutral="bad "),
    )
    data = read_preferences(path, candidates=3)
    assert [record.candidates for record in data.records] == [("good one", "so so", "bad")]
    assert dict(data.report.dropped) == {"no neutral sentence": 3, "candidates do not differ": 1}
    assert data.report.mean_words == {"anchor": 3, "chosen": 2, "neutral": 2, "rejected": 1}
    assert len(read_preferences(path).records) == 5


def test_three_candidates_are_refused_where_rows_have_two(jsonl):
    path = jsonl({"prompt": "a", "chosen": "b", "rejected": "c"})
    (problem,) = check_preferences(path, candidates=3)[1]
    assert (problem.what, problem.evidence) == (
        "no row is left to train on",
        "no neutral sentence: 1",
    )


def test_useless_rows_are_dropped_and_counted(jsonl):
    path = jsonl(
        triplet(),
        triplet(good="same", bad=" same\n"),
        triplet(),
        triplet(good=" good one "),
        triplet("other"),
    )
    data = read_preferences(path)
    assert [record.line for record in data.records] == [1, 5]
    report = data.report
    assert (report.path, report.format, report.rows, report.kept) == (str(path), "triplets", 5, 2)
    assert dict(report.dropped) == {
        "exact repeat of an earlier row": 2,
        "candidates do not differ": 1,
    }
    assert report.mean_words == {"anchor": 2, "chosen": 2, "rejected": 1}


def test_a_limit_keeps_the_first_rows_and_reads_no_further(jsonl):
    path = jsonl(triplet("1"), triplet("1"), triplet("2"), "not json")
    data = read_preferences(path, limit=2)
    assert [record.line for record in data.records] == [1, 3]
    assert data.report.rows == 3
    assert faults_of(path, limit=3) == ["4: not JSON: Expecting value at column 1"]


def test_all_faults_of_a_file_are_told(jsonl):
    path = jsonl(
        triplet("fine"),
        "{",
        "[1]",
        triplet("", " ", 3),
        {"anchor": "a", "entailment": None},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        triplet("half \ud800 pair"),
        {"other": 1},
        {**triplet(), "chosen": "x", "rejected": "y"},
    )
    assert faults_of(path) == [
        "2: not JSON: Expecting property name enclosed in double quotes at column 2",
        "3: not a JSON object",
        "4: the field `anchor` is empty",
        "4: the field `entailment` holds only blanks",
        "4: the field `contradiction` has type int, not text",
        "5: the field `entailment` is null",
        "5: the field `contradiction` is missing",
        "6: a trl row in a triplets file",
        "7: the field `anchor` holds half of a surrogate pair, which is no character",
        "8: the field `anchor` is missing",
        "8: the field `entailment` is missing",
        "8: the field `contradiction` is missing",
        "9: the keys fit triplets and trl alike",
    ]
    report, problems = check_preferences(path)
    assert len(problems) == 13
    assert (report.rows, report.kept, dict(report.dropped)) == (9, 1, {"faulty row": 8})


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "x"}, "the keys fit no known format"),
        ({"anchor": "x", "entailment": "y"}, "the field `contradiction` is missing"),
        ({"prompt": "x", "chosen": "y"}, "the field `rejected` is missing"),
        ({"chosen": "y", "rejected": "z"}, "the field `prompt` is missing"),
        ({"messages": [user("x")], "rejected_response": "z"}, "does not end in an assistant turn"),
        ({"messages": [], "rejected_response": "z"}, "`messages` is not a list of messages"),
        ({"messages": ["x"], "rejected_response": "z"}, "`messages[0]` is not a message"),
        ({"messages": [assistant("y")], "rejected_response": "z"}, "there is no prompt"),
        ({"rejected_response": "z"}, "the field `messages` is missing"),
        (
            {
                "prompt": [{"role": "system", "content": "a"}, user("x")],
                "system": "b",
                "chosen": "y",
                "rejected": "z",
            },
            "`system` is not what the system turn says",
        ),
        (
            {"system": "s", "chosen": [assistant("y")], "rejected": [assistant("z")]},
            "there is no prompt",
        ),
        (
            {"messages": [user("x"), assistant("")], "rejected_response": "z"},
            "`messages[1].content` is empty",
        ),
        (
            {"messages": [{"from": "human", "value": "x"}], "rejected_response": "z"},
            "`messages[0].role` is none of",
        ),
        (
            {"messages": [user("x"), assistant("y"), assistant("y")], "rejected_response": "z"},
            "the prompt ends in an assistant turn",
        ),
        (
            {"chosen": [user("x"), assistant("y")], "rejected": [user("w"), assistant("z")]},
            "chosen and rejected differ before their last turn",
        ),
        (
            {"prompt": "x", "chosen": [assistant("y")], "rejected": [assistant("z")]},
            "there is no prompt",
        ),
        (
            {"prompt": [user("x")], "chosen": [user("x")], "rejected": [assistant("z")]},
            "the field `chosen` does not end in an assistant turn",
        ),
        (
            {"prompt": "x", "chosen": [assistant("y")], "rejected": "z"},
            "the field `rejected` is not a list of messages",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z", "tools": [{"name": "f"}]},
            "the field `tools` is not supported",
        ),
    ],
)
def test_a_faulty_row_says_what_is_wrong(jsonl, row, what):
    told = faults_of(jsonl(row))
    assert any(each.startswith("1: ") and what in each for each in told), told


def test_keys_without_meaning_are_named(jsonl):
    path = jsonl(triplet(id=1), triplet("b", source="x", neutral="n"))
    assert read_preferences(path).report.ignored_keys == ("id", "source")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_empty_file_is_a_fault(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="no rows"):
        read_preferences(path)


def test_a_csv_of_a_header_alone_is_a_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sent0,sent1,hard_neg\n")
    with pytest.raises(DataError, match="no rows"):
        read_preferences(path)


def test_a_file_without_a_useful_row_is_a_fault(jsonl):
    (told,) = faults_of(jsonl(triplet(good="x", bad="x")))
    assert told.endswith("no row is left to train on")


def test_an_unknown_file_type_is_refused(tmp_path):
    with pytest.raises(DataError, match="no known file type"):
        read_preferences(tmp_path / "rows.parquet")


@pytest.mark.parametrize("options", [{"template": "P9"}, {"limit": 0}, {"candidates": 4}])
def test_senseless_options_are_usage_errors(jsonl, options):
    with pytest.raises(UsageError):
        read_preferences(jsonl(triplet()), **options)


def test_many_faults_are_counted(jsonl, monkeypatch):
    path = jsonl(*[{"other": 1}] * 150)
    report, problems = check_preferences(path)
    assert (len(problems), report.rows) == (150, 150)
    assert len(faults_of(path)) == 101
    monkeypatch.setattr("sempa_mlx.data.preferences.LISTED", 20)
    _, problems = check_preferences(path)
    assert problems[20].what == "130 more faults, not listed"


texts = st.text(max_size=8) | st.none() | st.integers(max_value=9)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}),
    max_size=3,
)
KEYS = (
    *("anchor", "entailment", "contradiction", "neutral", "prompt", "chosen", "rejected"),
    *("system", "messages", "rejected_response", "tools"),
)
few = st.sampled_from(["a", " a", "b", "c d"])
sound = st.fixed_dictionaries(
    {"anchor": few, "entailment": few, "contradiction": few}, optional={"neutral": few}
)
rows = st.dictionaries(st.sampled_from(KEYS), texts | turns, max_size=5) | sound

quick = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(st.lists(rows, max_size=4) | st.lists(sound, min_size=1), st.integers(2, 3))
def test_any_rows_give_sound_records_or_told_faults(jsonl, rows, candidates):
    path = jsonl(*rows)
    report, problems = check_preferences(path, candidates=candidates)
    assert report.rows == len(rows) == report.kept + sum(count for _, count in report.dropped)
    if problems:
        assert faults_of(path, candidates=candidates)
        return
    for record in read_preferences(path, candidates=candidates).records:
        assert len({text.strip() for text in record.candidates}) == candidates
        assert all(text.strip() for text in record.candidates)


@quick
@given(st.binary(max_size=120), st.sampled_from(["a.jsonl", "a.csv", "a.jsonl.gz"]))
def test_any_bytes_give_records_or_a_data_error(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(b"sent0,sent1,hard_neg\n" + content if name == "a.csv" else content)
    try:
        data = read_preferences(path)
    except DataError as error:
        assert all(problem.place.startswith(str(path)) for problem in error.problems)  # noqa: PT017
    else:
        assert data.records


@pytest.mark.unmeasured
def test_the_real_triplets_are_all_kept(shared_data):
    report = read_preferences(shared_data / "nli" / "train.jsonl.gz").report
    assert (report.rows, report.kept, report.dropped) == (25_371, 25_371, ())
    assert report.mean_words["anchor"] == pytest.approx(16.566, abs=1e-3)


@pytest.mark.unmeasured
def test_the_real_csv_holds_the_first_20000_triplets(shared_data):
    pairs = read_preferences(shared_data / "nli" / "train_pairs.csv.gz")
    assert pairs.report.rows == pairs.report.kept == 20_000
    triplets = read_preferences(shared_data / "nli" / "train.jsonl.gz", limit=20_000)
    assert [(each.prompt, each.candidates) for each in pairs.records] == [
        (each.prompt, each.candidates) for each in triplets.records
    ]


@pytest.mark.unmeasured
def test_the_real_neutrals_are_found(shared_data):
    report = read_preferences(shared_data / "nli" / "train.jsonl.gz", candidates=3).report
    assert dict(report.dropped)["no neutral sentence"] == 25_371 - 22_167


def test_faulty_rows_of_a_file_that_is_not_the_users_are_dropped_and_counted(tmp_path):
    path = tmp_path / "nli.csv"
    path.write_text("sent0,sent1,hard_neg\na b,a,b\nc d,c,\ne f,e,f\n")
    with pytest.raises(DataError):
        read_preferences(path)
    data = read_preferences(path, skip_faulty=True)
    assert [record.line for record in data.records] == [2, 4]
    assert data.report.rows == 3
    assert dict(data.report.dropped) == {FAULTY: 1}


def test_a_file_of_faulty_rows_only_is_never_skipped_over(tmp_path):
    path = tmp_path / "nli.csv"
    path.write_text("sent0,sent1,hard_neg\nc d,c,\n")
    with pytest.raises(DataError, match="hard_neg"):
        read_preferences(path, skip_faulty=True)
