"""STS sets of the Hub, in every layout that their repositories have had."""

import csv
import gzip
import io
import json
import socket
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from sempa_mlx.data import hub_sts
from sempa_mlx.data.hub_sts import SETS, check_hub_names, load_hub_tasks
from sempa_mlx.data.records import StsPair
from sempa_mlx.errors import DataError, ResourceError, UsageError

EN_DE = [(0.5, "A cat.", "Eine Katze."), (4.0, "Two dogs, here", "Zwei  Hunde")]
KO_KO = [(3, "고양이", "고양이가 있다")]


def pairs_of(rows):
    return tuple(StsPair(float(score), *sentences) for score, *sentences in rows)


def as_rows(subset=None, score="score", key="lang"):
    rows = {"en-de": EN_DE, "ko-ko": KO_KO}
    return [
        {score: number, "sentence1": left, "sentence2": right, "id": 7, key: name}
        for name, found in rows.items()
        if subset in (None, name)
        for number, left, right in found
    ]


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows, delimiter=","):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


class Repository:
    """Stands in for a data set on the Hub and its cache; `online` is what the Hub has."""

    def __init__(self, cache, name="STS17"):
        repo, self.revision, _ = SETS[name]
        folder = f"datasets--{repo.replace('/', '--')}"
        self.repo, self.snapshot = repo, cache / folder / "snapshots" / self.revision
        self.online = {}
        self.failure = None
        self.probes = 0

    def keep(self, files):
        for name, content in files.items():
            path = self.snapshot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def dataset_info(self, repo, *, revision, timeout):
        assert (repo, revision, timeout) == (self.repo, self.revision, 5.0)
        self.probes += 1
        if self.failure:
            raise self.failure
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.online])

    def snapshot_download(
        self, repo, *, repo_type, revision, local_files_only=False, allow_patterns=None
    ):
        assert (repo, repo_type, revision) == (self.repo, "dataset", self.revision)
        if not local_files_only:
            self.keep({name: self.online[name] for name in allow_patterns})
        elif not self.snapshot.is_dir():
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(self.snapshot)


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Return a function that puts a repository in the place of the Hub."""

    def put(name="STS17", **files):
        repository = Repository(tmp_path / "hub", name)
        repository.online = files
        for function in ("dataset_info", "snapshot_download"):
            monkeypatch.setattr(huggingface_hub, function, getattr(repository, function))
        return repository

    return put


LAYOUTS = {
    "one file with a column": {"test.jsonl.gz": gzip.compress(jsonl(as_rows()))},
    "column of another name": {"data/test.json": jsonl(as_rows(key="language"))},
    "column with an underscore": {
        "test.jsonl": jsonl([{**row, "lang": row["lang"].replace("-", "_")} for row in as_rows()])
    },
    "a folder a language": {
        "en-de/test.jsonl": jsonl(without(as_rows("en-de"), "lang")),
        "ko-ko/test.jsonl": jsonl(without(as_rows("ko-ko"), "lang")),
    },
    "a file a language": {
        "test/en-de.csv": table(without(as_rows("en-de", "similarity_score"), "lang")),
        "test/ko-ko.csv": table(without(as_rows("ko-ko", "similarity_score"), "lang")),
    },
    "the language in the name": {
        "sts17-en_de-test.tsv": table(without(as_rows("en-de", "label"), "lang"), "\t"),
        "sts17-ko_ko-test.tsv": table(without(as_rows("ko-ko", "label"), "lang"), "\t"),
    },
    "shards": {
        "data/test-00000-of-00002.jsonl": jsonl(as_rows("en-de")[:1] + as_rows("ko-ko")),
        "data/test-00001-of-00002.jsonl": jsonl(as_rows("en-de")[1:]),
    },
    "all and each": {
        "test.jsonl": jsonl(as_rows()),
        "en-de/test.jsonl": jsonl(as_rows("en-de")),
        "ko-ko/test.csv.gz": gzip.compress(table(as_rows("ko-ko"))),
    },
}
BESIDE = {
    "README.md": b"# test",
    "train.jsonl": b"broken",
    "latest.csv": b"x",
    "data/dev.json": b"[]",
    "en-de/test.parquet": b"PAR1",
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "fetched"])
def test_every_layout_gives_the_same_pairs(faked, files, is_cached):
    repository = faked(**files, **BESIDE)
    if is_cached:
        repository.keep(repository.online)
    tasks = load_hub_tasks(["STS17/ko-ko", "STS17/en-de"])
    assert [task.name for task in tasks] == ["STS17/ko-ko", "STS17/en-de"]
    assert [task.pairs for task in tasks] == [pairs_of(KO_KO), pairs_of(EN_DE)]
    for task in tasks:
        assert (task.protocol, task.subsets) == ("mteb", ())
        assert task.origin == f"{repository.repo}@{repository.revision}"
    assert repository.probes == (0 if is_cached else 1)


def test_only_the_files_to_read_are_fetched_and_once(faked):
    repository = faked(**LAYOUTS["all and each"], **BESIDE)
    load_hub_tasks(["STS17/en-de"])
    fetched = {
        path.relative_to(repository.snapshot).as_posix()
        for path in repository.snapshot.rglob("*.*")
    }
    assert fetched == LAYOUTS["all and each"].keys()
    repository.failure = OSError("offline now")
    load_hub_tasks(["STS17/en-de"])
    assert repository.probes == 1


def test_a_set_without_subsets_is_one_task(faked):
    faked("BIOSSES", **{"biosses-test.jsonl": jsonl(without(as_rows(), "lang"))})
    (task,) = load_hub_tasks(["BIOSSES"])
    assert (task.name, task.pairs) == ("BIOSSES", pairs_of(EN_DE + KO_KO))


def test_a_name_alone_stands_for_all_subsets(faked):
    subsets = SETS["STSb-multi"].subsets
    rows = [
        {"score": 1, "sentence1": f"eins {name}", "sentence2": "b", "lang": name}
        for name in subsets
    ]
    faked("STSb-multi", **{"test.jsonl": jsonl(rows)})
    tasks = load_hub_tasks(["STSb-multi/ru", "STSb-multi"])
    assert [task.name for task in tasks] == [
        "STSb-multi/ru",
        *(f"STSb-multi/{name}" for name in subsets if name != "ru"),
    ]
    assert [len(task.pairs) for task in tasks] == [1] * 10


def test_the_longest_name_in_a_path_counts():
    subsets = SETS["STS22"].subsets
    found = {
        name: hub_sts._subset_of(name, subsets)
        for name in (
            "test/de-en.jsonl.gz",
            "de-en/de/test.csv",
            "de/test.csv",
            "test.jsonl",
            "sts22_pl_en_test.tsv",
            "italian/test.csv",
        )
    }
    assert list(found.values()) == ["de-en", "de", "de", "", "pl-en", ""]


def test_a_cache_that_lacks_a_subset_is_filled(faked):
    repository = faked(**LAYOUTS["a folder a language"])
    repository.keep({"en-de/test.jsonl": repository.online["en-de/test.jsonl"]})
    assert load_hub_tasks(["STS17/en-de"])[0].pairs == pairs_of(EN_DE)
    assert repository.probes == 0
    tasks = load_hub_tasks(["STS17/en-de", "STS17/ko-ko"])
    assert [task.pairs for task in tasks] == [pairs_of(EN_DE), pairs_of(KO_KO)]
    assert repository.probes == 1


def test_a_subset_that_is_not_there_is_told(faked):
    faked(**LAYOUTS["one file with a column"])
    with pytest.raises(DataError, match="no pairs of es-es, fr-en") as caught:
        load_hub_tasks(["STS17/en-de", "STS17/es-es", "STS17/fr-en"])
    assert "test.jsonl.gz" in caught.value.problems[0].evidence


def test_every_broken_row_is_named(faked):
    rows = [*as_rows("en-de"), {**as_rows("en-de")[0], "score": "high"}, as_rows("ko-ko")[0]]
    rows[1]["sentence2"] = ""
    rows[3]["sentence1"] = None  # of a subset that is not asked for
    faked(**{"test.jsonl": jsonl(rows) + b"{\n", "test.csv": b"sentence1,text\na,b\n"})
    with pytest.raises(DataError) as caught:
        load_hub_tasks(["STS17/en-de"])
    told = [(problem.place.rpartition("/")[2], problem.what) for problem in caught.value.problems]
    assert told[0] == ("test.csv:2", "no `score` and no `sentence2`")
    assert told[1] == ("test.jsonl:2", "sentence 2 is empty")
    assert told[2] == ("test.jsonl:3", "the score is not a finite number")
    assert told[3][0] == "test.jsonl:5"
    assert len(told) == 4


def test_a_ragged_table_is_a_fault(faked):
    faked(**{"test.tsv": table(as_rows(), "\t") + b"1\t2\n"})
    with pytest.raises(DataError, match="2 columns instead of 5"):
        load_hub_tasks(["STS17/en-de"])


def test_a_line_of_a_table_that_is_no_text_is_a_fault(faked):
    faked(**{"test.tsv": table(as_rows(), "\t") + b"\xff\n"})
    with pytest.raises(DataError, match=r"test\.tsv:\d+: not UTF-8"):
        load_hub_tasks(["STS17/en-de"])


def test_no_test_files_at_all(faked):
    faked(**{"README.md": b"", "train.jsonl": b"", "test.txt": b""})
    with pytest.raises(DataError, match="no test files in a form that can be read") as caught:
        load_hub_tasks(["STS17"])
    assert "train.jsonl" in caught.value.problems[0].evidence


def test_parquet_alone_needs_pyarrow(faked, monkeypatch):
    monkeypatch.setattr(hub_sts, "find_spec", lambda name: None)
    repository = faked(**{"en-de/test-00000-of-00001.parquet": b"PAR1"})
    with pytest.raises(DataError, match="are parquet, which pyarrow reads") as caught:
        load_hub_tasks(["STS17/en-de"])
    assert caught.value.problems[0].fix == "pip install 'sempa-mlx[parquet]'"
    assert not repository.snapshot.exists()


def test_parquet_is_read_where_pyarrow_is(faked, monkeypatch):
    def read_table(path):
        if path.read_bytes() != b"PAR1":
            raise ValueError("no magic bytes")
        return SimpleNamespace(to_pylist=lambda: without(as_rows(path.parent.name), "lang"))

    package, reader = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    package.__spec__ = ModuleSpec("pyarrow", None)
    reader.read_table = read_table
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", reader)
    repository = faked(**{f"{name}/test.parquet": b"PAR1" for name in ("en-de", "ko-ko")})
    tasks = load_hub_tasks(["STS17/en-de", "STS17/ko-ko"])
    assert [task.pairs for task in tasks] == [pairs_of(EN_DE), pairs_of(KO_KO)]
    repository.keep({"ko-ko/test.parquet": b"PAR2"})
    with pytest.raises(DataError, match=r"ko-ko/test.parquet: broken parquet file: no magic"):
        load_hub_tasks(["STS17/en-de"])


def test_real_parquet_is_read(faked, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(as_rows()), tmp_path / "test.parquet")
    faked(**{"test.parquet": (tmp_path / "test.parquet").read_bytes()})
    assert load_hub_tasks(["STS17/en-de"])[0].pairs == pairs_of(EN_DE)


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("STS-17", "unknown STS task 'STS-17'", "did you mean STS17?"),
        ("biosses", "unknown STS task 'biosses'", "did you mean BIOSSES?"),
        ("stsb-multi/de", "unknown STS task 'stsb-multi/de'", "did you mean STSb-multi?"),
        ("STS17/en-dd", "STS17 has no subset 'en-dd'", "did you mean en-d"),
        ("STS17/", "STS17 has no subset ''", "Known: ko-ko, ar-ar, en-ar, en-de"),
        ("BIOSSES/en", "BIOSSES has no subset 'en'", "no subsets"),
        ("quite other", "unknown STS task", "Known: STSB, BIOSSES, STS17, STS22, STSb-multi"),
    ],
)
def test_unknown_names_are_told_before_anything_is_fetched(name, what, hint):
    with pytest.raises(UsageError) as caught:
        check_hub_names(["STS17", name, "STS22/zh-en"], ["STSB"])
    (problem,) = caught.value.problems
    assert problem.what.startswith(what)
    assert hint in problem.fix


def test_out_of_reach_and_refused_and_full(faked):
    class Response:
        headers: dict = {}  # noqa: RUF012
        request = None

    repository = faked()
    repository.failure = errors.OfflineModeIsEnabled("offline")
    with pytest.raises(DataError, match=r"cannot be reached and STS17 .* is not in the") as caught:
        load_hub_tasks(["STS17"])
    assert caught.value.problems[0].evidence == "OfflineModeIsEnabled: offline"
    repository.failure = errors.RevisionNotFoundError("gone", response=Response())
    with pytest.raises(DataError, match="does not give out STS17"):
        load_hub_tasks(["STS17"])
    repository.failure = OSError(28, "No space left on device")
    with pytest.raises(ResourceError, match="No space left"):
        load_hub_tasks(["STS17"])


def test_the_real_cache_is_read_without_a_network(tmp_path, monkeypatch):
    """With huggingface_hub itself, whose cache keeps a snapshot as links."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = Repository(tmp_path)
    blob = tmp_path / "blob"
    blob.write_bytes(jsonl(as_rows()))
    repository.snapshot.mkdir(parents=True)
    (repository.snapshot / "test.jsonl").symlink_to(blob)
    # What newer versions note of a revision: all of its files, of which one was asked for.
    listing = repository.snapshot.parents[1] / "trees" / f"{repository.snapshot.name}.json"
    listing.parent.mkdir()
    files = {name: {"size": 9, "blob_id": 40 * "a"} for name in ("test.jsonl", "README.md")}
    listing.write_text(json.dumps({"format_version": 1, "files": files}))
    (task,) = load_hub_tasks(["STS17/en-de"])
    assert task.pairs == pairs_of(EN_DE)
    begin = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached"):
        load_hub_tasks(["STS22/en"])
    assert time.monotonic() - begin < 5
    assert socket.socket.connect.__name__ == "refuse"


def test_revisions_are_commits():
    for source in SETS.values():
        assert len(source.revision) == 40
        assert int(source.revision, 16)
        assert len(set(source.subsets)) == len(source.subsets)
