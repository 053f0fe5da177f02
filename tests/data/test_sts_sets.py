import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.data.records import StsPair, StsSubset
from sempa_mlx.data.sts_sets import TASKS, load_dev_pairs, load_sts_tasks
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.errors import DataError, UsageError

PAIRS = {
    "STS12": 3108,
    "STS13": 1500,
    "STS14": 3750,
    "STS15": 3000,
    "STS16": 1186,
    "STSB": 1379,
    "SICKR": 4927,
}


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def faults_of(call, *args, **options):
    with pytest.raises(DataError) as caught:
        call(*args, **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def tsv_root(tmp_path):
    for name in ("b.one", "a.two"):
        put(tmp_path / "STS12" / f"{name}.tsv", f"1\t{name}  x \ty\n")
    put(tmp_path / "STS12" / "._a.two.tsv", "\0\0\0")
    put(tmp_path / "STS12" / "readme.txt", "not data")
    put(tmp_path / "STSB" / "test.tsv", "2\ttest\ty\n")
    put(tmp_path / "STSB" / "dev.tsv", "2\tdev\ty\n")
    for split in ("train", "trial", "test"):
        put(tmp_path / "SICKR" / f"{split}.tsv", f"3\t{split}\ty\n")
    return tmp_path


def first_sentences(task):
    return [pair.sentence1 for pair in task.pairs]


def test_a_task_that_is_named_twice_is_read_once(tsv_root):
    found = sts_tasks(str(tsv_root), ["STSB", "SICKR", "STSB"], None)
    assert [task.name for task in found] == ["STSB", "SICKR"]


def test_a_protocol_that_is_none_labels_nothing(tsv_root):
    with pytest.raises(UsageError, match="unknown protocol 'foo'"):
        sts_tasks(str(tsv_root), ["STSB"], "foo")


def test_tab_separated_folders_under_senteval(tsv_root):
    sts12, stsb, sick = load_sts_tasks(tsv_root, ["STS12", "STSB", "SICKR"], protocol="senteval")
    assert (sts12.name, sts12.protocol) == ("STS12", "senteval")
    assert first_sentences(sts12) == ["a.two x", "b.one x"]
    assert first_sentences(stsb) == ["test"]
    assert first_sentences(sick) == ["test"]
    assert sts12.subsets == (StsSubset("a.two", 1), StsSubset("b.one", 1))
    assert stsb.subsets == sick.subsets == (), "one file is no subset"


def test_tab_separated_folders_under_mteb(tsv_root):
    sick, sts12 = load_sts_tasks(tsv_root, ["SICKR", "STS12"], protocol="mteb")
    assert first_sentences(sick) == ["train", "trial", "test"]
    assert first_sentences(sts12) == ["a.two  x ", "b.one  x "]
    assert sick.protocol == "mteb"


@pytest.fixture(params=["", "downstream"])
def senteval_root(tmp_path, request):
    base = tmp_path / request.param
    sts = base / "STS"
    put(sts / "STS15-en-test" / "STS.input.belief.txt", "a  b\tc\nun\tscored\nd\te\tsource\tnote\n")
    put(sts / "STS15-en-test" / "STS.gs.belief.txt", "4.5\n\n0\n")
    put(sts / "STS15-en-test" / "STS.input.images.txt", "f\tg\n")
    put(sts / "STS15-en-test" / "STS.gs.images.txt", "3\n")
    put(sts / "STS15-en-test" / "correlation.pl", "print 1;")
    for split in ("dev", "test"):
        rows = f'news\tMSRpar\t2012\t0007\t2.6\t{split} "x"  y\tz\n'
        rows += "other\tf\t2\t1\t1\tq\tr\tlicence\n"
        put(sts / "STSBenchmark" / f"sts-{split}.csv", rows)
    for name in ("SICK_train", "SICK_trial", "SICK_test_annotated"):
        rows = (
            f"pair_ID\tsentence_A\tsentence_B\trelatedness_score\tjudgment\n1\t{name}\tB\t4.5\tX\n"
        )
        put(base / "SICK" / f"{name}.txt", rows)
    return tmp_path


def test_sentevals_own_folders(senteval_root):
    sts15, stsb, sick = load_sts_tasks(
        senteval_root, ["STS15", "STSB", "SICKR"], protocol="senteval"
    )
    assert sts15.pairs == (StsPair(4.5, "a b", "c"), StsPair(0, "d", "e"), StsPair(3, "f", "g"))
    assert stsb.pairs == (StsPair(2.6, 'test "x" y', "z"), StsPair(1, "q", "r"))
    assert sts15.subsets == (StsSubset("belief", 2), StsSubset("images", 1))
    assert sick.pairs == (StsPair(4.5, "SICK_test_annotated", "B"),)
    (sick,) = load_sts_tasks(senteval_root, ["SICKR"], protocol="mteb")
    assert first_sentences(sick) == ["SICK_train", "SICK_trial", "SICK_test_annotated"]
    assert [subset.name for subset in sick.subsets] == ["train", "trial", "test"]


def test_the_benchmarks_own_dev_file(senteval_root):
    (path,) = senteval_root.rglob("sts-dev.csv")
    assert load_dev_pairs(path, None) == (StsPair(2.6, 'dev "x" y', "z"), StsPair(1, "q", "r"))


def test_lines_that_are_no_text_are_told_of_both_files(senteval_root):
    (sentences,) = senteval_root.rglob("STS.input.images.txt")
    sentences.write_bytes(b"\xff\tg\n")
    sentences.with_name("STS.gs.images.txt").write_bytes(b"3\0\n")
    with pytest.raises(DataError) as caught:
        load_sts_tasks(senteval_root, ["STS15"], protocol="senteval")
    assert [problem.what for problem in caught.value.problems] == [
        "not UTF-8",
        "a NUL byte, so this is not a text file",
    ]


def test_faults_of_all_tasks_are_told_together(senteval_root):
    folder = next(senteval_root.rglob("STS15-en-test"))
    put(folder / "STS.gs.belief.txt", "4.5\t1\n\nnone\n")
    put(folder / "STS.gs.images.txt", "3\n2\n")
    (sick,) = senteval_root.rglob("SICK_trial.txt")
    sick.unlink()
    belief, images = folder / "STS.input.belief.txt", folder / "STS.input.images.txt"
    assert faults_of(
        load_sts_tasks, senteval_root, ["STS14", "STS15", "SICKR"], protocol="mteb"
    ) == [
        f"{senteval_root}: no data for STS14",
        f"{belief}:1: the score is not a finite number",
        f"{belief}:3: the score is not a finite number",
        f"{images}: has fewer lines than STS.gs.images.txt",
        f"{sick}: no such file",
    ]


def test_a_missing_gold_file_and_missing_folders_are_data_errors(senteval_root):
    folder = next(senteval_root.rglob("STS15-en-test"))
    (folder / "STS.gs.images.txt").unlink()
    (told,) = faults_of(load_sts_tasks, senteval_root, ["STS15"], protocol="mteb")
    assert told == f"{folder / 'STS.gs.images.txt'}: no such file"
    shutil.rmtree(folder)
    with pytest.raises(DataError) as caught:
        load_sts_tasks(senteval_root, ["STS15"], protocol="mteb")
    fix = caught.value.problems[0].fix
    assert str(senteval_root / "STS15") in fix
    assert str(senteval_root / "STS" / "STS15-en-test") in fix
    (told,) = faults_of(load_sts_tasks, senteval_root / "x", ["STS15"], protocol="mteb")
    assert told.endswith("no such folder")


def test_unknown_tasks_are_told_with_the_close_name(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_sts_tasks(tmp_path, ["sick-r", "STS12", "MNLI"], protocol="senteval")
    first, second = caught.value.problems
    assert "did you mean SICKR" in first.fix
    assert "STS16" in second.fix
    with pytest.raises(UsageError, match="no STS task"):
        load_sts_tasks(tmp_path, [], protocol="senteval")


@pytest.mark.parametrize(
    ("count", "kept"),
    [(None, "0123456789"), (10, "0123456789"), (99, "0123456789"), (4, "0257"), (1, "0")],
)
def test_dev_pairs_are_spread_over_the_file(tmp_path, count, kept):
    path = put(tmp_path / "dev.tsv", "".join(f"1\t{number}  \tx\n" for number in range(10)))
    assert "".join(pair.sentence1 for pair in load_dev_pairs(path, count)) == kept


def test_no_dev_pairs_at_all_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        load_dev_pairs(tmp_path / "dev.tsv", 0)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 40), st.integers(1, 50))
def test_dev_pairs_are_distinct_and_in_order(tmp_path, total, count):
    path = put(tmp_path / "dev.tsv", "".join(f"{number}\ta\tb\n" for number in range(total)))
    scores = [pair.score for pair in load_dev_pairs(path, count)]
    assert scores == sorted(set(scores))
    assert len(scores) == min(count, total)


@pytest.mark.parametrize("folder", ["sts", "sts_senteval"])
def test_the_real_sets_have_the_published_sizes(shared_data, folder):
    tasks = load_sts_tasks(shared_data / folder, protocol="senteval")
    assert {task.name: len(task.pairs) for task in tasks} == PAIRS
    assert tuple(PAIRS) == TASKS
    for task in tasks:
        assert sum(subset.num_pairs for subset in task.subsets) in (0, len(task.pairs))
    assert {subset.name: subset.num_pairs for subset in tasks[0].subsets} == {
        "MSRpar": 750,
        "MSRvid": 750,
        "SMTeuroparl": 459,
        "surprise.OnWN": 750,
        "surprise.SMTnews": 399,
    }
    assert all(pair.sentence1 == " ".join(pair.sentence1.split()) for pair in tasks[1].pairs)


def test_the_real_sick_has_all_splits_under_mteb(shared_data):
    (sick,) = load_sts_tasks(shared_data / "sts", ["SICKR"], protocol="mteb")
    assert len(sick.pairs) == 9927
    assert all(1 <= pair.score <= 5 for pair in sick.pairs)


def test_the_real_dev_set_can_be_thinned(shared_data):
    path = shared_data / "sts" / "STSB" / "dev.tsv"
    pairs = load_dev_pairs(path, None)
    assert len(pairs) == 1500
    assert load_dev_pairs(path, 500) == pairs[::3]
