"""GGUF files that lie: MLX's own reader would end the process on many of these."""

import random
import struct
import subprocess
import sys

import pytest

from sempa_mlx.errors import ModelError
from sempa_mlx.model.gguf import build_model, read_gguf
from sempa_mlx.model.gguf_header import check_header
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from tests.tiny_gguf import METADATA, all_metadata, random_tensors, tokenizer_metadata, write_gguf

U32, STRING, ARRAY, F32 = 4, 8, 9, 0


def text(content, length=None):
    return struct.pack("<Q", len(content) if length is None else length) + content


def value(name, kind, content):
    return text(name) + struct.pack("<I", kind) + content


def tensor(name, *sizes, kind=F32, dimensions=None):
    count = len(sizes) if dimensions is None else dimensions
    shape = struct.pack(f"<I{len(sizes)}Q", count, *sizes)
    return text(name) + shape + struct.pack("<IQ", kind, 0)


ARCHITECTURE = value(b"general.architecture", STRING, text(b"llama"))


def file_of(*parts, tensors=0, values=1, version=3):
    content = b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(parts)
    return content + bytes(-len(content) % 32 + 64)


def aligned(kind, content):
    alignment = value(b"general.alignment", kind, content)
    return file_of(ARCHITECTURE, alignment, tensor(b"a", 4, 4), tensors=1, values=2)


LIES = {
    "empty": (b"", "is empty"),
    "magic": (b"GGML" + bytes(60), "does not begin"),
    "version": (file_of(ARCHITECTURE, version=1), "version 1"),
    "cut": (b"GGUF" + struct.pack("<I", 3), "beyond the file"),
    "values": (file_of(ARCHITECTURE, values=2**62), "beyond the file|values of type"),
    "tensors": (file_of(ARCHITECTURE, tensors=2**62), "beyond the file|0 dimensions"),
    "name": (file_of(text(b"abc", 2**60)), "name in the header is too long"),
    "long name": (file_of(text(bytes(1 << 17))), "name in the header is too long"),
    "string": (file_of(value(b"k", STRING, text(b"abc", 2**60))), "beyond the file"),
    "array": (file_of(value(b"k", ARRAY, struct.pack("<IQ", U32, 2**60))), "beyond the file"),
    "strings": (file_of(value(b"k", ARRAY, struct.pack("<IQ", STRING, 2**60))), "beyond the file"),
    "nested": (
        file_of(value(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100_000)),
        "values of type 9",
    ),
    "type": (file_of(value(b"k", 99, bytes(8))), "values of type 99"),
    "dimensions": (
        file_of(ARCHITECTURE, tensor(b"a", 1, dimensions=2**31), tensors=1),
        "2147483648 dimensions",
    ),
    "nine": (file_of(ARCHITECTURE, tensor(b"a", *[1] * 9), tensors=1), "9 dimensions"),
    "none": (file_of(ARCHITECTURE, tensor(b"a"), tensors=1), "0 dimensions"),
    "no rows": (file_of(ARCHITECTURE, tensor(b"a", 4, 0), tensors=1), "tensor is empty"),
    "alignment 0": (aligned(U32, struct.pack("<I", 0)), "no power of two"),
    "alignment 3": (aligned(U32, struct.pack("<I", 3)), "no power of two"),
    "alignment text": (aligned(STRING, text(b"")), "no power of two"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_mlx_sees_it(tmp_path, monkeypatch, lie):
    content, words = LIES[lie]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    monkeypatch.setattr("sempa_mlx.model.gguf.mx.load", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match=words) as error:
        read_gguf(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("tail", [(256, 256), (1 << 40,), (1 << 62, 16), (2**31, 2**31)])
def test_tensors_beyond_the_file_are_refused(tmp_path, tail):
    """The header holds together, so that this is MLX's own check."""
    path = tmp_path / "m.gguf"
    path.write_bytes(file_of(ARCHITECTURE, tensor(b"a", *tail), tensors=1))
    check_header(path)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        read_gguf(path)


def test_a_sound_header_is_walked_to_its_end(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(aligned(U32, struct.pack("<I", 64)))
    check_header(path)
    write_gguf(path, all_metadata(), random_tensors())
    check_header(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.block_count": 2**31}, "above the number of tensors, 20"),
        ({"llama.attention.head_count": 0}, "head_count is no number above 0"),
        ({"llama.embedding_length": 1}, "4 heads share 1 numbers"),
        ({"llama.rope.freq_base": -1.0}, "freq_base is no number above 0"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is no number above 0"),
        ({"llama.context_length": "long"}, "context_length is no number above 0"),
        ({"llama.attention.head_count_kv": True}, "head_count_kv is no number above 0"),
    ],
)
def test_sizes_that_no_model_has_are_refused(tmp_path, changes, words):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.architecture": "llama"} | METADATA | changes, random_tensors())
    with pytest.raises(ModelError, match=words):
        build_model(read_gguf(path), keep_quantized=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.merges": ["a b", "never there"]}, r"merges .* are of no tokens"),
        ({"tokenizer.ggml.merges": ["one"]}, r"1 merges .* are of no tokens"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "names token 1000000 of 340"),
        ({"tokenizer.ggml.eos_token_id": -1}, "names token -1 of 340"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ModelError, match=words):
        build_tokenizer(tokenizer_metadata() | changes)


MUTATE = """
import sys
from pathlib import Path
from tests.security.test_gguf import try_mutants
try_mutants(Path(sys.argv[1]), int(sys.argv[2]))
"""


def try_mutants(path, count):
    """Change a few bytes of a sound file, again and again; print what came of it."""
    write_gguf(path, all_metadata(), random_tensors(), "Q4_0")
    sound = path.read_bytes()
    header = sound.index(b"token_embd.weight") + 1500
    rng = random.Random(5)
    found = set()
    for _ in range(count):
        content = bytearray(sound)
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(header)
            wide = rng.random() < 0.3
            number = rng.choice((0, 1, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1))
            content[at : at + 8] = number.to_bytes(8, "little") if wide else content[at : at + 8]
            content[at] = rng.randrange(256)
        path.write_bytes(content)
        try:
            gguf = read_gguf(path)
            build_model(gguf, keep_quantized=False)
            build_tokenizer(gguf.metadata)
            found.add("read")
        except ModelError:
            found.add("refused")
    sys.stdout.write(f"{sorted(found)}\n")


@pytest.mark.unmeasured
def test_damaged_files_are_read_or_refused(tmp_path):
    """In a process of their own: a fault in MLX's reader would end this one."""
    command = [sys.executable, "-c", MUTATE, str(tmp_path / "m.gguf"), "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert (done.returncode, done.stdout) == (0, "['read', 'refused']\n"), done.stderr
