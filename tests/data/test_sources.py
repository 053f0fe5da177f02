import errno
import io
import shutil
import stat
import tarfile
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sempa_mlx.data import sources
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.readers import read_text
from sempa_mlx.data.sources import Source, dev_source, general_text, sts_root, training_source
from sempa_mlx.data.sts_sets import load_dev_pairs, load_sts_tasks
from sempa_mlx.errors import DataError, ResourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEV = "news\tf\t2012\t1\t2.5\tdev one\tdev two\n"
GOOD = {
    "./STS/STS15-en-test/STS.input.images.txt": "a\tb\n",
    "./STS/STS15-en-test/STS.gs.images.txt": "3\n",
    "./STS/STS15-en-test/correlation.pl": "print 1;",
    "./STS/STSBenchmark/sts-dev.csv": DEV,
    "./STS/STSBenchmark/sts-test.csv": DEV.replace("dev", "test"),
    "./SICK/SICK_test_annotated.txt": "id\ta\tb\tscore\n1\ta\tb\t4\n",
    "./MR/rt-polarity.pos": "not wanted",
}


class Hub:
    """Stands in for `hf_hub_download`: a cache folder, and an answer from far away."""

    def __init__(self, cache):
        self.cache = cache
        self.snapshot = cache / "datasets--x" / "snapshots" / COMMIT
        self.far = errors.LocalEntryNotFoundError("no connection")
        self.calls = []

    def keep(self, name, content):
        self.snapshot.mkdir(parents=True, exist_ok=True)
        (self.snapshot / name).write_bytes(content)

    def __call__(self, repo, name, *, repo_type, local_files_only=False):
        assert (repo, repo_type) == ("princeton-nlp/datasets-for-simcse", "dataset")
        self.calls.append((name, local_files_only))
        path = self.snapshot / name
        if path.exists():
            return str(path)
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not in the cache")
        if isinstance(self.far, Exception):
            raise self.far
        self.keep(name, self.far)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fake.cache))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    return fake


def refused(kind):
    class Response:
        headers: dict = {}  # noqa: RUF012
        request = None

    return kind("the server said no\nand more", response=Response())


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            info, content = member
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def plain(name, content=b"x"):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def good_tar():
    folder = tarfile.TarInfo("./STS")
    folder.type = tarfile.DIRTYPE
    return tar_of([(folder, b""), *(plain(name, text.encode()) for name, text in GOOD.items())])


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_demo_needs_no_hub(hub):
    assert training_source("demo").path.parts[-4:] == (
        "sempa_mlx",
        "data",
        "demo",
        "triplets.jsonl",
    )
    assert dev_source("demo").path.name == "sts.tsv"
    assert training_source("demo").note == ""
    assert hub.calls == []


def test_the_packaged_demo_rows_are_sound():
    training, dev = training_source("demo").path, dev_source("demo").path
    assert not read_preferences(training).report.dropped
    assert len(load_dev_pairs(dev, None)) >= 50


def test_the_packaged_text_is_long_enough_to_draw_from_and_repeats_nothing():
    lines = read_text(general_text("general"), state="").splitlines()
    assert len(lines) == len(set(lines)) >= 100
    assert sum(len(line.split()) for line in lines) >= 3000


def test_any_other_text_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "general").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert general_text("./general") == Path("general")
    assert general_text("~/general") == tmp_path / "general"


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch, hub):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    assert training_source(str(path)) == Source(path, "rows.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dev_source("~/rows.jsonl").path == path
    assert sts_root(str(tmp_path)) == tmp_path
    assert hub.calls == []


@pytest.mark.parametrize(
    ("find", "spec", "hint"),
    [
        (training_source, "nil", "did you mean nli?"),
        (general_text, "genral", "did you mean general?"),
        (training_source, "no/such/rows.jsonl", "one of: auto, demo, nli"),
        (dev_source, "stbs", "did you mean stsb?"),
        (sts_root, "no/such/folder", "`hub`"),
    ],
)
def test_what_is_not_there_is_told(find, spec, hint):
    with pytest.raises(DataError, match="no such") as caught:
        find(spec)
    assert hint in caught.value.problems[0].fix


def test_a_folder_is_no_training_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        training_source(str(tmp_path))


def test_nli_is_downloaded_once(hub):
    hub.far = b"sent0,sent1,hard_neg\na,b,c\n"
    source = training_source("nli")
    assert (source.label, source.note) == ("nli", "")
    assert (source.revision, source.is_downloaded) == (COMMIT, True)
    assert len(read_preferences(source.path).records) == 1
    assert hub.calls == [("nli_for_simcse.csv", True), ("nli_for_simcse.csv", False)]
    hub.far = errors.LocalEntryNotFoundError("offline now")
    assert training_source("auto").path == source.path
    assert hub.calls[2:] == [("nli_for_simcse.csv", True)]


def test_auto_takes_the_demo_rows_and_says_so(hub):
    for find in (training_source, dev_source):
        source = find("auto")
        assert source.label == "demo"
        assert (source.revision, source.is_downloaded) == (None, False)
        assert source.path == find("demo").path
        assert "cannot be reached" in source.note


@pytest.mark.parametrize(
    ("find", "spec"), [(training_source, "nli"), (dev_source, "stsb"), (sts_root, "hub")]
)
def test_out_of_reach_is_one_message_with_the_next_step(hub, find, spec):
    with pytest.raises(DataError, match="cannot be reached") as caught:
        find(spec)
    (problem,) = caught.value.problems
    assert "sempa-mlx data download" in problem.fix


@pytest.mark.parametrize(
    "failure",
    [
        errors.OfflineModeIsEnabled("offline"),
        errors.HfHubHTTPError.__bases__[0]("connection lost"),
        refused(errors.HfHubHTTPError),
        OSError("tests are offline"),
        TimeoutError("too slow"),
        RuntimeError("xet transfer broke"),
    ],
)
def test_every_kind_of_lost_connection_is_out_of_reach(hub, failure):
    hub.far = failure
    assert training_source("auto").label == "demo"
    with pytest.raises(DataError, match="cannot be reached") as caught:
        training_source("nli")
    assert type(failure).__name__ in caught.value.problems[0].evidence


@pytest.mark.parametrize(
    "kind",
    [
        errors.RepositoryNotFoundError,
        errors.GatedRepoError,
        errors.RemoteEntryNotFoundError,
        errors.RevisionNotFoundError,
    ],
)
def test_a_refusal_is_no_lost_connection(hub, kind):
    hub.far = refused(kind)
    for spec in ("nli", "auto"):
        with pytest.raises(DataError, match="does not give out") as caught:
            training_source(spec)
    (problem,) = caught.value.problems
    assert "\n" not in problem.evidence
    assert "hf auth login" in problem.fix


def test_a_full_disk_is_a_resource_error(hub):
    hub.far = OSError(errno.ENOSPC, "No space left on device", "/cache")
    with pytest.raises(ResourceError, match="No space left") as caught:
        training_source("auto")
    assert caught.value.exit_code == 4


def test_without_a_connection_the_answer_comes_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    assert "cannot be reached" in training_source("auto").note
    assert time.monotonic() - begin < 5


def test_senteval_is_unpacked_beside_the_cache(hub):
    hub.far = good_tar()
    root = sts_root("hub")
    assert root == hub.cache.parent / "sempa-mlx" / f"senteval-{COMMIT}"
    wanted = [name[2:] for name in GOOD if name.endswith((".txt", ".csv"))]
    assert files_below(root) == sorted(wanted)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    tasks = load_sts_tasks(root, ["STS15", "STSB", "SICKR"], protocol="senteval")
    assert [len(task.pairs) for task in tasks] == [1, 1, 1]
    source = dev_source("stsb")
    assert (source.label, load_dev_pairs(source.path, None)[0].sentence1) == ("stsb", "dev one")
    assert source.revision == COMMIT


def test_what_is_unpacked_is_found_without_a_hub(hub):
    hub.far = good_tar()
    root = sts_root("hub")
    (hub.snapshot / "senteval.tar").unlink()
    hub.far = errors.LocalEntryNotFoundError("offline now")
    hub.calls.clear()
    assert sts_root("hub") == root
    assert dev_source("auto").label == "stsb"
    assert hub.calls == []


def test_two_processes_may_unpack_at_once(hub, monkeypatch):
    hub.far = good_tar()
    write = sources._write

    def slow(tar, member, target):
        write(tar, member, target)
        other = target
        while other.parent.name != "sempa-mlx":
            other = other.parent
        done = other.parent / f"senteval-{COMMIT}" / "STS"
        done.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(sources, "_write", slow)
    root = sts_root("hub")
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def typed(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    return info, b""


MALICIOUS = {
    "parent": [plain("STS/../../../evil.txt")],
    "parent first": [plain("../STS/evil.txt")],
    "absolute": [plain("/STS/evil.txt")],
    "symlink": [link("STS/evil.txt", "/etc/passwd")],
    "folder link": [link("STS", "../../.."), plain("STS/evil.txt")],
    "hard link": [link("STS/evil.txt", "../../evil.txt", tarfile.LNKTYPE)],
    "device": [typed("SICK/evil.txt", tarfile.CHRTYPE)],
    "fifo": [typed("SICK/evil.txt", tarfile.FIFOTYPE)],
    "twice": [plain("STS/a.txt"), plain("./STS/A.txt")],
}


@pytest.mark.parametrize("members", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_a_malicious_tar_leaves_nothing_behind(hub, members, tmp_path):
    hub.far = tar_of([plain("STS/good.txt"), *members])
    with pytest.raises(DataError) as caught:
        sts_root("hub")
    assert caught.value.state == "nothing was unpacked"
    assert all("senteval.tar:" in problem.place for problem in caught.value.problems)
    assert files_below(tmp_path) == [str(Path("hub/datasets--x/snapshots", COMMIT, "senteval.tar"))]


def test_a_tar_of_something_else_is_refused(hub, tmp_path):
    hub.far = tar_of([plain("MR/a.txt"), plain("STS/script.pl")])
    with pytest.raises(DataError, match="this is not SentEval's data"):
        sts_root("hub")
    assert list((tmp_path / "sempa-mlx").iterdir()) == []


@pytest.mark.parametrize("limit", ["_MEMBER_BYTES", "_TOTAL_BYTES", "_MEMBERS"])
def test_a_tar_that_is_too_big_is_refused(hub, monkeypatch, tmp_path, limit):
    monkeypatch.setattr(sources, limit, 3)
    hub.far = good_tar()
    with pytest.raises(DataError):
        sts_root("hub")
    assert list((tmp_path / "sempa-mlx").iterdir()) == []


def test_a_sparse_member_cannot_blow_up(hub, tmp_path):
    info = tarfile.TarInfo("STS/bomb.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")  # what it claims to unpack to
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    hub.far = bytes(header) + bytes(1024)
    with pytest.raises(DataError, match=r"too big: 1,099,511,627,776 bytes"):
        sts_root("hub")
    assert list((tmp_path / "sempa-mlx").iterdir()) == []


def test_a_file_where_a_folder_must_be_is_a_data_error(hub, tmp_path):
    hub.far = tar_of([plain("STS/a.txt"), plain("STS/a.txt/b.txt")])
    with pytest.raises(DataError, match="cannot be unpacked"):
        sts_root("hub")
    assert list((tmp_path / "sempa-mlx").iterdir()) == []


def test_a_full_disk_while_unpacking_leaves_nothing(hub, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.far = good_tar()
    monkeypatch.setattr(sources, "_write", full)
    with pytest.raises(ResourceError):
        sts_root("hub")
    assert list((tmp_path / "sempa-mlx").iterdir()) == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_tar_is_a_data_error_or_read(tmp_path, data):
    content = bytearray(good_tar())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    archive = tmp_path / "damaged.tar"
    archive.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    target = tmp_path / "home" / "senteval-x"
    try:
        sources._unpack(archive, target)
    except DataError as error:
        assert error.problems  # noqa: PT017
    else:
        assert files_below(target)
        shutil.rmtree(target)
    assert list((tmp_path / "home").iterdir()) == []
