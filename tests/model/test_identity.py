"""Digests of weight files, and of what else makes a model."""

import json

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.model.identity import fingerprint, weight_files
from sempa_mlx.model.load import load_model
from tests.tiny import write_tiny_folder

SIZES = (0, 1, 4096, 4097, 256 * 4096, 3_000_000)


def test_equal_files_have_equal_fingerprints_wherever_they_lie(tmp_path):
    for number, size in enumerate(SIZES):
        one, two = tmp_path / f"a{number}", tmp_path / f"b{number}"
        one.write_bytes(bytes(size))
        two.write_bytes(bytes(size))
        assert fingerprint([one]) == fingerprint([two])
        assert len(fingerprint([one])) == 16


def test_every_size_has_its_own_fingerprint(tmp_path):
    found = set()
    for size in SIZES:
        file = tmp_path / str(size)
        file.write_bytes(bytes(size))
        found.add(fingerprint([file]))
    assert len(found) == len(SIZES)


def test_any_byte_of_a_small_file_counts(tmp_path):
    file = tmp_path / "weights"
    content = bytearray(10_000)
    file.write_bytes(content)
    found = {fingerprint([file])}
    for place in range(0, 10_000, 97):
        content[place] = 1
        file.write_bytes(content)
        found.add(fingerprint([file]))
        content[place] = 0
    assert len(found) == 1 + len(range(0, 10_000, 97))


def test_first_and_last_byte_of_a_large_file_count(tmp_path):
    file = tmp_path / "weights"
    content = bytearray(3_000_000)
    file.write_bytes(content)
    found = {fingerprint([file])}
    for place in (0, -1):
        changed = bytearray(content)
        changed[place] = 1
        file.write_bytes(changed)
        found.add(fingerprint([file]))
    assert len(found) == 3


def test_a_model_has_one_fingerprint_in_every_precision(tmp_path):
    write_tiny_folder(tmp_path / "model")
    names = {
        load_model(str(tmp_path / "model"), dtype=d).fingerprint for d in ("float32", "bfloat16")
    }
    assert len(names) == 1
    assert weight_files(tmp_path / "model") == [tmp_path / "model" / "model.safetensors"]


def test_settings_and_tokenizer_tell_models_of_equal_weights_apart(tmp_path):
    def loaded(name, file, **changes):
        write_tiny_folder(tmp_path / name)
        path = tmp_path / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return load_model(str(tmp_path / name))

    base = loaded("base", "config.json")
    same = loaded("same", "config.json", transformers_version="9", torch_dtype="float16")
    turned = loaded("turned", "config.json", rope_theta=1e6)
    lower = loaded("lower", "tokenizer.json", normalizer={"type": "Lowercase"})
    assert {each.fingerprint for each in (base, same, turned, lower)} == {base.fingerprint}
    assert base.setup == same.setup
    assert len({each.setup for each in (base, turned, lower)}) == 3
    keys = [Encoder(each).vectors_key for each in (base, same, turned, lower)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
