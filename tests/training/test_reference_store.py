import errno
import fcntl
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.model.completions import TokenRow
from sempa_mlx.training.reference_store import (
    ReferenceStore,
    default_folder,
    row_key,
    store_path,
)

ROW = TokenRow((1, 2, 3), ((4, 5), (6,)))
KNOWN_KEY = "ada7a1b79361647809c471b6579b6176"
NAMES = {"fingerprint": "a" * 16, "dtype": "float32", "device": "cpu", "candidates": 2}


def record_size(candidates):
    return 16 + 4 * 2 * candidates + 4


def key_of(number):
    return number.to_bytes(16, "little")  # mostly zeros: nothing may cut them off


def values_of(number, candidates=2):
    return np.random.default_rng(number).normal(-30, 9, (2, candidates)).astype(np.float32)


def items_of(numbers, candidates=2):
    return {key_of(number): values_of(number, candidates) for number in numbers}


def packed(key, values):
    """A record, written another way."""
    body = key + struct.pack(f"<{values.size}f", *values.ravel().tolist())
    return body + struct.pack("<I", zlib.crc32(body))


def found(path, numbers, candidates=2):
    """The numbers whose values the file knows; a wrong value fails the test."""
    store = ReferenceStore(path, candidates)
    known = {number for number in numbers if store.get(key_of(number)) is not None}
    for number in known:
        np.testing.assert_array_equal(store.get(key_of(number)), values_of(number, candidates))
    assert len(store) == len(known)
    return known


@pytest.fixture
def path(tmp_path):
    return tmp_path / "below" / "values.bin"


# What is kept


@pytest.mark.parametrize("candidates", [1, 2, 3, 5])
def test_values_come_back_bit_for_bit(path, candidates):
    ReferenceStore(path, candidates).add(items_of(range(7), candidates))
    assert found(path, range(9), candidates) == set(range(7))
    assert path.stat().st_size == 7 * record_size(candidates)


def test_values_have_their_shape_and_type(path):
    store = ReferenceStore(path, 3)
    store.add({key_of(1): np.arange(6.0).reshape(2, 3)})
    for known in (store, ReferenceStore(path, 3)):
        values = known.get(key_of(1))
        assert (values.shape, values.dtype) == ((2, 3), np.float32)
        np.testing.assert_array_equal(values, [[0, 1, 2], [3, 4, 5]])


def test_the_format_is_the_documented_one(path):
    expected = b"".join(packed(key, values) for key, values in items_of(range(4)).items())
    ReferenceStore(path, 2).add(items_of(range(4)))
    assert path.read_bytes() == expected


def test_the_first_of_two_values_wins(path):
    path.parent.mkdir()
    path.write_bytes(packed(key_of(1), values_of(1)) + packed(key_of(1), values_of(2)))
    assert found(path, [1]) == {1}


def test_known_rows_are_not_written_again(path):
    store = ReferenceStore(path, 2)
    store.add(items_of([1, 2]))
    store.add({key_of(1): values_of(9)} | items_of([3]))
    assert path.stat().st_size == 3 * record_size(2)
    assert found(path, [1, 2, 3]) == {1, 2, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_values_that_are_not_finite_are_not_kept(path, bad, place):
    broken = values_of(1)
    broken[place] = bad
    store = ReferenceStore(path, 2)
    store.add({key_of(1): broken} | items_of([2]))
    assert store.get(key_of(1)) is None
    assert found(path, [1, 2]) == {2}


def test_looking_writes_nothing(path):
    store = ReferenceStore(path, 2)
    assert store.get(key_of(1)) is None
    store.add({})
    store.add({key_of(1): np.full((2, 2), np.nan, np.float32)})
    assert not path.parent.exists()


def test_the_file_is_no_program(path):
    ReferenceStore(path, 2).add(items_of([1]))
    assert path.stat().st_mode & 0o133 == 0


# Damage


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_costs_only_the_records_it_touches(data):
    """Any cut and any flipped byte: no wrong value, all others found, and the file goes on."""
    candidates = data.draw(st.integers(1, 3), "candidates")
    count = data.draw(st.integers(1, 5), "records")
    size = record_size(candidates)
    content = bytearray(
        b"".join(packed(*item) for item in items_of(range(count), candidates).items())
    )
    cut = data.draw(st.integers(0, len(content)), "cut")
    del content[cut:]
    expected = set(range(cut // size))
    if content and data.draw(st.booleans(), "flip?"):
        place = data.draw(st.integers(0, len(content) - 1), "place")
        content[place] ^= data.draw(st.integers(1, 255), "bits")
        expected -= {place // size}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "values.bin")
        path.write_bytes(content)
        assert found(path, range(count), candidates) == expected
        ReferenceStore(path, candidates).add(items_of(range(count + 2), candidates))
        assert found(path, range(count + 2), candidates) == set(range(count + 2))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_a_file_of_anything_knows_nothing(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "values.bin")
        path.write_bytes(content)
        assert len(ReferenceStore(path, 2)) == 0


def test_zeros_that_a_power_cut_leaves_are_no_record(path):
    path.parent.mkdir()
    path.write_bytes(bytes(3 * record_size(2)) + packed(key_of(1), values_of(1)))
    assert found(path, [0, 1]) == {1}


def test_a_file_of_other_candidates_knows_nothing(path):
    ReferenceStore(path, 3).add(items_of(range(50), 3))
    assert len(ReferenceStore(path, 2)) == 0


# Many processes

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from sempa_mlx.training.reference_store import ReferenceStore

path, gate, first, count = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
store = ReferenceStore(path, 2)
print("ready", flush=True)
while not gate.exists():
    time.sleep(0.001)
for number in range(first, first + count):
    values = np.random.default_rng(number).normal(-30, 9, (2, 2)).astype(np.float32)
    store.add({number.to_bytes(16, "little"): values})
    print(number, flush=True)
"""


def writer(path, gate, first, count):
    """Start a process that waits for the gate, then adds rows one by one and names each."""
    arguments = [str(path), str(gate), str(first), str(count)]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_write_at_once_lose_nothing(path):
    """The file begins with a torn record, which each of them wants to cut off."""
    path.parent.mkdir()
    path.write_bytes(packed(key_of(0), values_of(0)) + b"torn")
    gate = path.with_name("go")
    processes = [writer(path, gate, first, 150) for first in (1, 151)]
    gate.touch()
    for process in processes:
        process.communicate(timeout=200)
        assert process.returncode == 0
    assert found(path, range(400)) == set(range(301))
    assert path.stat().st_size == 301 * record_size(2)


def test_a_killed_process_leaves_all_that_it_has_added(path):
    gate = path.parent.parent / "go"
    gate.touch()
    process = writer(path, gate, 1, 10**6)
    told = [process.stdout.readline() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    told += process.stdout  # to its end; communicate() would pass over what is buffered
    process.wait(timeout=200)
    process.stdout.close()
    added = {int(line) for line in told}
    assert len(added) >= 50
    later = ReferenceStore(path, 2)
    assert all(later.get(key_of(number)) is not None for number in added)
    later.add(items_of([0]))
    assert {0} | added <= found(path, range(max(added) + 9))


def test_what_others_wrote_is_learnt_when_adding_and_not_written_twice(path):
    mine, theirs = ReferenceStore(path, 2), ReferenceStore(path, 2)
    theirs.add(items_of([1, 2]))
    assert mine.get(key_of(1)) is None
    mine.add(items_of([2, 3]))
    np.testing.assert_array_equal(mine.get(key_of(1)), values_of(1))
    theirs.add(items_of([4]))
    np.testing.assert_array_equal(theirs.get(key_of(3)), values_of(3))
    mine.add(items_of([1, 2, 3, 5]))
    assert path.stat().st_size == 5 * record_size(2)
    assert found(path, range(9)) == {1, 2, 3, 4, 5}


def test_a_file_that_is_deleted_meanwhile_is_begun_anew(path):
    store = ReferenceStore(path, 2)
    store.add(items_of([1, 2, 3]))
    path.unlink()
    ReferenceStore(path, 2).add(items_of([4]))
    store.add(items_of([5]))
    np.testing.assert_array_equal(store.get(key_of(4)), values_of(4))
    assert found(path, range(9)) == {4, 5}


def test_a_record_is_appended_only_under_the_lock(path, monkeypatch):
    store = ReferenceStore(path, 2)
    real_write, blocked = os.write, []

    def probing(descriptor, content):
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        blocked.append(len(content))
        return real_write(descriptor, content)

    monkeypatch.setattr(os, "write", probing)
    store.add(items_of([1, 2, 3]))
    assert blocked == [3 * record_size(2)]  # once, and whole


# A disk that does not do its part


def test_a_full_disk_is_told_once_and_keeps_whole_records(path):
    """The limit lets one record and a half through."""
    store = ReferenceStore(path, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (record_size(2) * 3 // 2, before[1]))
        try:
            store.add(items_of([1, 2]))
            store.add(items_of([3]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caught) == 1
    assert caught[0].category is UserWarning
    for part in (str(path), "cannot write reference values", "HF_HOME"):
        assert part in str(caught[0].message)
    assert store.fault.place == str(path)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(store.get(key_of(number)), values_of(number))
    assert path.stat().st_size == record_size(2)
    assert found(path, range(9)) == {1}
    store.add(items_of([4]))  # there is room again
    assert found(path, range(9)) == {1, 4}


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path):
    (tmp_path / "folder").symlink_to(tmp_path / "nowhere" / "at" / "all")
    store = ReferenceStore(tmp_path / "folder" / "values.bin", 2)
    assert store.fault is None
    with pytest.warns(UserWarning, match="cannot write reference values"):
        store.add(items_of([1]))
    store.add(items_of([2]))  # a second warning would be an error here
    assert store.get(key_of(1)) is not None
    assert store.get(key_of(2)) is not None


def test_a_file_that_cannot_be_read_is_told_once(path):
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot read reference values"):
        store = ReferenceStore(path, 2)
    store.add(items_of([1]))  # a second warning would be an error here
    np.testing.assert_array_equal(store.get(key_of(1)), values_of(1))


def test_nothing_is_written_where_files_cannot_be_locked(path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    store = ReferenceStore(path, 2)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=os.strerror(errno.ENOLCK)):
        store.add(items_of([1]))
    assert path.read_bytes() == b""
    assert store.get(key_of(1)) is not None


# Keys and names


def test_the_key_is_a_hash_of_counts_and_ids():
    numbers = [2, 3, 2, 1, 1, 2, 3, 4, 5, 6]
    expected = blake2b(struct.pack("<10i", *numbers), digest_size=16).digest()
    assert row_key(ROW) == expected


@pytest.mark.parametrize(
    "other",
    [
        TokenRow((1, 2), ((3, 4, 5), (6,))),
        TokenRow((1, 2, 3, 4), ((5,), (6,))),
        TokenRow((1, 2, 3), ((4,), (5, 6))),
        TokenRow((1, 2, 3), ((4, 5, 6),)),
        TokenRow((1, 2, 3), ((4,), (5,), (6,))),
        TokenRow((1, 2, 3), ((6,), (4, 5))),
        TokenRow((1, 2, 3), ((4, 5), (7,))),
        TokenRow((1, 2, 259), ((4, 5), (6,))),
    ],
)
def test_rows_that_differ_in_a_boundary_an_order_or_a_token_have_other_keys(other):
    assert row_key(other) != row_key(ROW)


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
token_rows = st.builds(TokenRow, tokens, st.lists(tokens, min_size=1, max_size=3).map(tuple))


@settings(max_examples=150, deadline=None)
@given(one=token_rows, other=token_rows)
def test_keys_are_equal_for_equal_rows_alone(one, other):
    assert (row_key(one) == row_key(other)) == (one == other)


def test_keys_stay_the_same_from_release_to_release():
    """Another value here means: raise FORMAT."""
    assert row_key(ROW).hex() == KNOWN_KEY
    assert store_path(Path("x"), **NAMES) == Path("x") / f"v1-{'a' * 16}-float32-cpu-k2.bin"


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "b" * 16}, {"dtype": "float16"}, {"device": "metal"}, {"candidates": 3}],
)
def test_other_weights_precision_device_or_candidates_have_a_file_of_their_own(tmp_path, change):
    assert store_path(tmp_path, **(NAMES | change)) != store_path(tmp_path, **NAMES)


def test_values_live_beside_the_other_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert default_folder() == tmp_path / "sempa-mlx" / "reference"
