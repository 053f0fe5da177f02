import struct

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sempa_mlx.errors import ModelError
from sempa_mlx.model.gguf import GgufFile, build_model, model_config, read_gguf
from sempa_mlx.model.gguf_shapes import read_shapes
from sempa_mlx.model.load import load_model
from tests.arrays import as_numpy, assert_equal
from tests.tiny import CHATML, tiny_tokenizer
from tests.tiny_gguf import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    all_metadata,
    llama3_table,
    random_tensors,
    write_gguf,
)

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_in_mlx(name):
    if name in NAMES:
        return NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def in_halves(rows, num_heads):
    """Undo llama.cpp's order by a loop: rows 2i and 2i+1 of a head go to i and i + half."""
    out = np.empty_like(rows)
    size = len(rows) // num_heads
    for head in range(num_heads):
        for pair in range(size // 2):
            first = head * size
            out[first + pair] = rows[first + 2 * pair]
            out[first + size // 2 + pair] = rows[first + 2 * pair + 1]
    return out


def in_llamas_order(rows, num_heads):
    """Write rows as llama.cpp's converter does (its `permute`)."""
    size = len(rows) // num_heads
    return rows.reshape(num_heads, 2, size // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write(path, kind="F32", tensors=None, **metadata):
    everything = {
        key: value for key, value in (all_metadata() | metadata).items() if value is not None
    }
    return write_gguf(path, everything, tensors or random_tensors(), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_gguf_reads(tmp_path, kind):
    meant = write(tmp_path / "m.gguf", kind, random_tensors(untied=True))
    model = build_model(read_gguf(tmp_path / "m.gguf"), keep_quantized=False)
    found = as_numpy(model.parameters())
    assert found.keys() == {name_in_mlx(name) for name in meant}
    for name, value in meant.items():
        if "attn_q" in name:
            value = in_halves(value, HEADS)
        elif "attn_k" in name:
            value = in_halves(value, KV_HEADS)
        np.testing.assert_allclose(found[name_in_mlx(name)], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_packed_and_unpacked_models_compute_the_same(tmp_path, kind):
    write(tmp_path / "m.gguf", kind)
    tokens = mx.array([[5, 9, 300, 33, 2, 64]])
    outputs = {}
    for keep in (True, False):
        model = build_model(read_gguf(tmp_path / "m.gguf"), keep_quantized=keep)
        model.set_dtype(mx.float32)
        outputs[keep] = np.array(model(tokens))
        packed = [name for name, _ in tree_flatten(model.parameters()) if name.endswith("scales")]
        assert len(packed) == (2 * 7 + 1 if keep else 0)
    np.testing.assert_allclose(outputs[True], outputs[False], atol=1e-3, rtol=0)
    assert np.abs(outputs[False]).max() > 1.0


def test_the_rotary_permutation_is_undone_head_by_head(tmp_path):
    """A Llama whose q and k go through llama.cpp's order computes what it did before."""
    original = random_tensors(seed=2)
    stored = {}
    for name, value in original.items():
        heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else None
        stored[name] = value if heads is None else in_llamas_order(value, heads)
    write(tmp_path / "m.gguf", "F32", stored)
    found = build_model(read_gguf(tmp_path / "m.gguf"), keep_quantized=False)
    assert_equal(found.parameters(), {name_in_mlx(name): value for name, value in original.items()})


def test_the_config_is_the_files(tmp_path):
    write(tmp_path / "m.gguf", **{"llama.rope.freq_base": 5e5})
    config = model_config(read_gguf(tmp_path / "m.gguf"))
    assert config["hidden_size"] == 64
    assert config["num_hidden_layers"] == 2
    assert config["intermediate_size"] == 96
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert config["head_dim"] == HEAD_DIM
    assert config["vocab_size"] == 340
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert config["rope_theta"] == pytest.approx(5e5)
    assert config["rope_scaling"] is None
    assert config["max_position_embeddings"] == 256
    assert config["tie_word_embeddings"] is True


def test_as_many_kv_heads_as_heads_by_default(tmp_path):
    tensors = random_tensors()
    for layer in range(2):
        for part in ("k", "v"):
            name = f"blk.{layer}.attn_{part}.weight"
            tensors[name] = np.concatenate([tensors[name]] * 2)
    write(tmp_path / "m.gguf", tensors=tensors, **{"llama.attention.head_count_kv": None})
    model = build_model(read_gguf(tmp_path / "m.gguf"), keep_quantized=False)
    assert model.args.num_key_value_heads == HEADS


# Rotary tables


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_llama_3_table_is_recognised(tmp_path, factor):
    table = llama3_table(HEAD_DIM, 5e5, factor)
    assert len(set(table.tolist())) >= 3  # untouched, blended and divided frequencies
    tensors = random_tensors() | {"rope_freqs.weight": table}
    write(tmp_path / "m.gguf", tensors=tensors, **{"llama.rope.freq_base": 5e5})
    gguf = read_gguf(tmp_path / "m.gguf")
    assert model_config(gguf)["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = build_model(gguf, keep_quantized=False).layers[0].self_attn.rope
    plain = 5e5 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(np.array(rope._freqs), plain * table, rtol=1e-4)


def test_an_unknown_table_is_refused(tmp_path):
    tensors = random_tensors() | {"rope_freqs.weight": llama3_table(HEAD_DIM, 5e5, 5.0)}
    write(tmp_path / "m.gguf", tensors=tensors, **{"llama.rope.freq_base": 5e5})
    with pytest.raises(ModelError, match="unknown table of rotary frequencies"):
        build_model(read_gguf(tmp_path / "m.gguf"), keep_quantized=False)


def test_linear_scaling_is_taken_over(tmp_path):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write(tmp_path / "m.gguf", **scaling)
    config = model_config(read_gguf(tmp_path / "m.gguf"))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"llama.rope.dimension_count": 8}, "partial rotary embeddings"),
    ],
)
def test_rotary_variants_that_are_not_supported(tmp_path, metadata, words):
    write(tmp_path / "m.gguf", **metadata)
    with pytest.raises(ModelError, match=words):
        load_model(str(tmp_path / "m.gguf"))


# Loading through the door


def test_a_whole_file_is_loaded(tmp_path):
    write(tmp_path / "m.gguf", "Q8_0")
    loaded = load_model(str(tmp_path / "m.gguf"))
    assert loaded.location.origin == "GGUF file"
    assert loaded.dtype == mx.float32
    assert {value.dtype for _, value in tree_flatten(loaded.model.parameters())} == {mx.float32}
    assert loaded.tokenizer.chat_template == CHATML
    text = "Two dogs don't run in 2024. <|im_end|>\n  שלום"
    expected = tiny_tokenizer().encode(text, add_special_tokens=False)
    assert loaded.tokenizer.encode(text, add_special_tokens=False) == expected
    assert loaded.tokenizer.eos_token == "<|im_end|>"


def faults(path):
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    assert all(str(path) in problem.place for problem in error.value.problems)
    return [problem.what for problem in error.value.problems]


def test_all_missing_and_unknown_tensors_are_named(tmp_path):
    tensors = random_tensors()
    del tensors["blk.0.ffn_up.weight"], tensors["blk.1.attn_k.weight"]
    write(tmp_path / "m.gguf", tensors=tensors)
    found = " ".join(faults(tmp_path / "m.gguf"))
    assert "model.layers.0.mlp.up_proj.weight" in found
    assert "model.layers.1.self_attn.k_proj.weight" in found
    tensors = random_tensors() | {"blk.0.attn_mystery.weight": np.ones((2, 2), np.float32)}
    write(tmp_path / "n.gguf", tensors=tensors)
    assert "attn_mystery" in " ".join(faults(tmp_path / "n.gguf"))


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    tensors = random_tensors()
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:64]
    write(tmp_path / "m.gguf", tensors=tensors)
    assert "model.layers.0.mlp.up_proj.weight" in " ".join(faults(tmp_path / "m.gguf"))


def test_heads_that_do_not_divide_the_rows_are_refused(tmp_path):
    write(tmp_path / "m.gguf", **{"llama.attention.head_count": 7})
    assert "disagree" in faults(tmp_path / "m.gguf")[0]


def test_a_file_without_embeddings_is_refused(tmp_path):
    tensors = random_tensors()
    del tensors["token_embd.weight"]
    write(tmp_path / "m.gguf", tensors=tensors)
    assert faults(tmp_path / "m.gguf") == ["'token_embd.weight' is missing"]


@pytest.mark.parametrize("key", ["llama.block_count", "llama.attention.head_count"])
def test_a_file_without_its_sizes_is_refused(tmp_path, key):
    write(tmp_path / "m.gguf", **{key: None})
    assert faults(tmp_path / "m.gguf") == [f"'{key}' is missing"]


@pytest.mark.parametrize(
    "metadata", [{"general.architecture": "qwen2"}, {"llama.expert_count": 8}], ids=str
)
def test_another_architecture_is_refused(tmp_path, metadata):
    write(tmp_path / "m.gguf", **metadata)
    (fault,) = faults(tmp_path / "m.gguf")
    assert "only dense `llama`" in fault


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kept):
    write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: int(kept * len(whole))])
    (fault,) = faults(tmp_path / "m.gguf")
    assert fault.startswith("not a readable GGUF file")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_text("this is no model" * 100)
    (fault,) = faults(tmp_path / "m.gguf")
    assert fault.startswith("not a readable GGUF file")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm' is not supported"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer kind 't5' is not supported"),
        ({"tokenizer.ggml.model": None}, "tokenizer kind None is not supported"),
        ({"tokenizer.ggml.tokens": None}, "lacks tokens$"),
        ({"tokenizer.ggml.merges": None}, "lacks merges$"),
        ({"tokenizer.ggml.model": "llama"}, "lacks scores$"),
    ],
    ids=str,
)
def test_a_tokenizer_that_cannot_be_rebuilt(tmp_path, metadata, words):
    write(tmp_path / "m.gguf", **metadata)
    with pytest.raises(ModelError, match=words):
        load_model(str(tmp_path / "m.gguf"))


def test_metadata_are_plain_values(tmp_path):
    write(tmp_path / "m.gguf")
    gguf = read_gguf(tmp_path / "m.gguf")
    assert isinstance(gguf, GgufFile)
    assert gguf.metadata["llama.block_count"] == 2
    assert isinstance(gguf.metadata["llama.rope.freq_base"], float)
    assert isinstance(gguf.metadata["tokenizer.ggml.token_type"], list)
    assert gguf.metadata["tokenizer.ggml.tokens"][:1] == ["<|im_start|>"]


@pytest.mark.parametrize(("kind", "name"), [(12, "Q4_K"), (10, "Q2_K"), (6, "Q5_0"), (99, "99")])
def test_types_of_tensors_that_are_not_read_exactly_are_refused(tmp_path, kind, name):
    """mlx 0.32.4 reads Q4_K, the most common of all, with the scales of other blocks."""
    write(tmp_path / "m.gguf", "Q8_0")
    content = (tmp_path / "m.gguf").read_bytes()
    tensor = b"blk.0.ffn_up.weight"
    at = content.index(tensor) + len(tensor) + 4 + 2 * 8  # dimensions, two sizes
    assert struct.unpack_from("<I", content, at) == (8,)
    changed = content[:at] + struct.pack("<I", kind) + content[at + 4 :]
    (tmp_path / "m.gguf").write_bytes(changed)
    for read in (read_gguf, read_shapes):
        with pytest.raises(ModelError, match=f"blk.0.ffn_up.weight is of type {name}, which") as e:
            read(tmp_path / "m.gguf")
        assert "take a file of F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q6_K" in e.value.problems[0].fix


def test_weights_of_bf16_that_float16_cannot_hold_are_refused(tmp_path):
    tensors = random_tensors()
    tensors["blk.0.ffn_up.weight"][0, 0] = 1e5
    write(tmp_path / "m.gguf", "BF16", tensors)
    with pytest.raises(
        ModelError, match=r"blk\.0\.ffn_up\.weight is of type BF16 and holds weights"
    ):
        read_gguf(tmp_path / "m.gguf")


def test_embeddings_of_q6_k_are_read_as_float16(tmp_path):
    """As llama.cpp has them in files of Q4_0 whose width is a multiple of 256."""
    blocks, generator = 4, np.random.default_rng(0)
    packed = generator.integers(0, 256, (blocks, 210), dtype=np.uint8)
    packed[:, 208:] = np.full(blocks, 0.01, np.float16).view(np.uint8).reshape(blocks, 2)
    kind = gguf.GGMLQuantizationType.Q6_K
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.quants.dequantize(packed, kind)
    found = np.array(read_gguf(tmp_path / "m.gguf").tensors["token_embd.weight"])
    np.testing.assert_array_equal(found, expected.astype(np.float16))
