import json

import pytest

from sempa_mlx.data.lm_prompts import clean_hellaswag
from sempa_mlx.data.lm_tasks import FILES, load_lm_tasks
from sempa_mlx.errors import DataError, UsageError
from tests.lm_files import (
    SUBJECTS,
    gsm8k_rows,
    hellaswag_rows,
    mmlu_rows,
    truthfulqa_rows,
    write_jsonl,
    write_lm_files,
)


@pytest.fixture
def folder(tmp_path):
    return write_lm_files(tmp_path)


def one(folder, name, limit=None):
    (task,) = load_lm_tasks(folder, [name], limit)
    return task


# Prompts


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A man runs.", "A man runs."),
        (" A man  runs. ", "A man runs."),
        ("Roof shingles. [title] Fix them. [step] Go up.", "Roof shingles.. Fix them. Go up."),
        ("[header] How to sew [title] Buy thread.", " How to sew. Buy thread."),
        ("[title] First. [substeps] Then.", " First. Then."),
    ],
)
def test_marks_of_wikihow_are_cleaned_as_the_harness_does(raw, clean):
    """Expected texts were made by running lm-eval 0.4.13's own function."""
    assert clean_hellaswag(raw) == clean


def test_hellaswag_by_hand(folder):
    task = one(folder, "hellaswag")
    assert (task.name, task.shots, task.metrics) == ("hellaswag", 0, ("acc", "acc_norm"))
    second = task.questions[1]
    assert second.prompt == " How to feed 1 dogs. Buy food. A man is running."
    assert second.choices == ("He eats 1.", " A woman reads a book.", "Run!", "The cat")
    assert second.is_true == (False, True, False, False)
    assert "no activity labels" in task.note


def test_hellaswags_own_form_has_the_published_prompt(tmp_path):
    row = {
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap.", "is ripping tiles.", "holds a cube.", "pulls up roofing."],
        "label": "3",
    }
    write_jsonl(tmp_path / "hellaswag_val.jsonl", [row, row | {"ctx_b": ""}])
    task = one(tmp_path, "hellaswag")
    assert task.questions[0].prompt == "Roof shingle removal: A man is sitting on a roof. He"
    assert task.questions[1].prompt == "Roof shingle removal: A man is sitting on a roof."
    assert task.questions[0].is_true == (False, False, False, True)
    assert task.note == ""


def test_truthfulqa_by_hand(folder):
    single, multiple = load_lm_tasks(folder, ["truthfulqa"])
    assert [task.name for task in (single, multiple)] == ["truthfulqa_mc1", "truthfulqa_mc2"]
    assert (single.metrics, multiple.metrics) == (("acc",), ("true_mass",))
    question = single.questions[4]
    assert question.prompt == multiple.questions[4].prompt
    assert question.prompt.startswith("Q: What is human life expectancy in the United States?\nA: ")
    assert question.prompt.endswith("Barcelona, Spain.\n\nQ: Are 4 dogs on the grass?\nA:")
    assert question.prompt.count("Q: ") == 7
    assert question.choices == ("They are 4.", "A woman is.", "No 0")
    assert question.is_true == (True, False, False)
    assert multiple.questions[4].is_true == (True, True, False)


def test_mmlu_by_hand(folder):
    task = one(folder, "mmlu")
    assert (task.shots, task.metrics) == (5, ("acc",))
    question = task.questions[7]
    assert question.section == "high_school_physics"
    parts = question.prompt.split("\n\n")
    assert len(parts) == 7
    assert parts[0] == (
        "The following are multiple choice questions (with answers) about high school physics."
    )
    assert parts[1] == "What is 0 + 10?\nA. 10\nB. 11\nC. 12\nD. 13\nAnswer: C"
    assert parts[6] == "What is 1 + 0?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert question.choices == ("A", "B", "C", "D")
    assert question.is_true == (False, True, False, False)


def test_gsm8k_by_hand(folder):
    task = one(folder, "gsm8k")
    assert task.shots == 8
    question = task.questions[2]
    assert question.answer == "1,002"
    parts = question.prompt.split("\n\n")
    assert len(parts) == 9
    assert parts[0].startswith("Q: There are 15 trees in the grove. ")
    assert all("The answer is " in part for part in parts[:8])
    assert parts[8] == "Q: A man has 2 books?\nA:"


# Which questions


def test_a_limit_takes_the_first_and_of_mmlu_the_first_of_each_subject(folder):
    whole, cut = (load_lm_tasks(folder, list(FILES), limit) for limit in (None, 2))
    for task, few in zip(whole, cut, strict=True):
        if task.name == "mmlu":
            assert [question.section for question in few.questions] == [
                subject for subject in SUBJECTS for _ in range(2)
            ]
            assert few.questions == (*task.questions[:2], *task.questions[6:8])
        else:
            assert few.questions == task.questions[:2]


def test_tasks_come_in_the_order_named(folder):
    names = [task.name for task in load_lm_tasks(folder, ["gsm8k", "truthfulqa", "hellaswag"])]
    assert names == ["gsm8k", "truthfulqa_mc1", "truthfulqa_mc2", "hellaswag"]


def test_an_unpacked_file_is_preferred_to_a_packed_one(folder):
    write_jsonl(folder / "hellaswag_sample.jsonl", hellaswag_rows(2))
    assert len(one(folder, "hellaswag").questions) == 2


# Faults


def problems(folder, *names):
    with pytest.raises(DataError) as caught:
        load_lm_tasks(folder, names)
    return [str(problem) for problem in caught.value.problems]


def test_unknown_tasks_are_named_with_a_guess(folder):
    with pytest.raises(UsageError) as caught:
        load_lm_tasks(folder, ["helaswag", "mmlu"])
    assert "did you mean hellaswag?" in caught.value.problems[0].fix


def test_every_missing_file_is_told(tmp_path):
    (tmp_path / "gsm8k_tests.jsonl").write_text("{}\n")
    found = problems(tmp_path, *FILES)
    assert len(found) == 5
    assert "no file mmlu_dev.jsonl" in found[2]
    with pytest.raises(DataError) as caught:
        load_lm_tasks(tmp_path, ["gsm8k"])
    assert "is it gsm8k_tests.jsonl?" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("hellaswag", {"ctx": "  "}, "`ctx` holds only blanks"),
        ("hellaswag", {"endings": ["one"]}, "`endings` is not a list"),
        ("hellaswag", {"endings": "four"}, "`endings` is not a list"),
        ("hellaswag", {"endings": ["a", None, "c", "d"]}, "`endings` is null"),
        ("hellaswag", {"label": 4}, "`label` is not a number from 0 to 3"),
        ("hellaswag", {"label": True}, "`label` is not a number"),
        ("hellaswag", {"label": ""}, "`label` is not a number"),
        ("truthfulqa", {"question": 3}, "`question` has type int"),
        ("truthfulqa", {"mc1_targets": {"a": 0, "b": 0}}, "`mc1_targets` does not map"),
        ("truthfulqa", {"mc1_targets": {"a": True, "b": False}}, "`mc1_targets` does not map"),
        ("truthfulqa", {"mc2_targets": ["a"]}, "`mc2_targets` does not map"),
        ("mmlu", {"choices": ["1", "2", "3"]}, "`choices` is not a list of 4"),
        ("mmlu", {"answer": "E"}, "`answer` is not a number"),
        ("gsm8k", {"answer": None}, "`answer` is null"),
    ],
)
def test_a_faulty_field_is_told_with_its_place(tmp_path, name, changes, expected):
    rows = {
        "hellaswag": hellaswag_rows,
        "truthfulqa": truthfulqa_rows,
        "mmlu": mmlu_rows,
        "gsm8k": gsm8k_rows,
    }[name](3)
    rows[1] |= changes
    write_lm_files(tmp_path)
    (tmp_path / "hellaswag_sample.jsonl.gz").unlink()
    if name == "truthfulqa":
        (tmp_path / FILES[name][0]).write_text(json.dumps(rows))
    else:
        write_jsonl(tmp_path / FILES[name][0], rows)
    (found,) = problems(tmp_path, name)
    assert expected in found
    assert FILES[name][0] in found
    assert (":2: " if name != "truthfulqa" else ": item 2: ") in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "not usable JSON: "),
        (f"[{'1' * 5000}]", "not usable JSON: "),
        ('[{"question": "a", "question": "b"}]', "'question' stands twice"),
    ],
)
def test_json_that_no_row_can_be_made_of_is_told(tmp_path, text, expected):
    (tmp_path / "mc_task.json").write_text(text)
    assert expected in problems(tmp_path, "truthfulqa")[0]


def test_a_missing_field_and_rows_that_are_none_are_told(tmp_path):
    write_jsonl(tmp_path / "gsm8k_test.jsonl", [{"question": "Why?"}, {"answer": "#### 3"}])
    (tmp_path / "mc_task.json").write_text('[3, {"question": "?"}')
    found = problems(tmp_path, "gsm8k", "truthfulqa")
    assert ["no field `answer`" in found[0], "no field `question`" in found[1]] == [True, True]
    assert "not JSON" in found[2]
    with (tmp_path / "gsm8k_test.jsonl").open("a") as rows:
        rows.write("no JSON\n")
    assert any("gsm8k_test.jsonl:3: not JSON" in each for each in problems(tmp_path, "gsm8k"))
    (tmp_path / "mc_task.json").write_text("[3]")
    found = problems(tmp_path, "truthfulqa")
    assert "item 1: not a JSON object" in found[0]
    assert "no rows" in found[1]
    (tmp_path / "mc_task.json").write_text('{"a": 1}')
    assert "not a JSON list" in problems(tmp_path, "truthfulqa")[0]


def test_too_few_solved_examples_are_told(folder):
    write_jsonl(folder / "mmlu_dev.jsonl", mmlu_rows(4))
    found = problems(folder, "mmlu")
    assert len(found) == 2
    assert "4 examples of abstract_algebra instead of 5" in found[0]


@pytest.mark.unmeasured
def test_the_real_files_are_read(shared_data):
    tasks = load_lm_tasks(shared_data / "lm", list(FILES))
    counts = {task.name: len(task.questions) for task in tasks}
    assert counts == {
        "hellaswag": 2000,
        "truthfulqa_mc1": 817,
        "truthfulqa_mc2": 817,
        "mmlu": 14042,
        "gsm8k": 1319,
    }
