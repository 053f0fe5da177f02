"""Tiny GGUF files, written with llama.cpp's own Python package."""

import json
import math

import numpy as np
import pytest

from tests.tiny import CHATML, CONTROL_TOKENS, END, START, tiny_tokenizer

gguf = pytest.importorskip("gguf")

DIM, LAYERS, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM = 64, 2, 96, 4, 2, 16
METADATA = {
    "llama.context_length": 256,
    "llama.embedding_length": DIM,
    "llama.block_count": LAYERS,
    "llama.feed_forward_length": FEED_FORWARD,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}


def tokenizer_metadata():
    """Describe the tiny tokenizer as llama.cpp's converter does."""
    backend = json.loads(tiny_tokenizer()._tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"] | {
        token["content"]: token["id"] for token in backend["added_tokens"]
    }
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control, normal = 3, 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [control if t in CONTROL_TOKENS else normal for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in backend["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index(START),
        "tokenizer.ggml.eos_token_id": tokens.index(END),
        "tokenizer.chat_template": CHATML,
    }


def all_metadata():
    return {"general.architecture": "llama"} | METADATA | tokenizer_metadata()


def random_tensors(seed=0, vocabulary=340, *, untied=False):
    """Return the tensors of a Llama under llama.cpp's names, float32, q and k as it stores them."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return (1.5 * rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    def vector():
        return (1 + 0.2 * rng.standard_normal(DIM)).astype(np.float32)

    tensors = {"token_embd.weight": matrix(vocabulary, DIM), "output_norm.weight": vector()}
    if untied:
        tensors["output.weight"] = matrix(vocabulary, DIM)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": vector(),
            f"{block}.ffn_norm.weight": vector(),
            f"{block}.attn_q.weight": matrix(HEADS * HEAD_DIM, DIM),
            f"{block}.attn_k.weight": matrix(KV_HEADS * HEAD_DIM, DIM),
            f"{block}.attn_v.weight": matrix(KV_HEADS * HEAD_DIM, DIM),
            f"{block}.attn_output.weight": matrix(DIM, HEADS * HEAD_DIM),
            f"{block}.ffn_gate.weight": matrix(FEED_FORWARD, DIM),
            f"{block}.ffn_up.weight": matrix(FEED_FORWARD, DIM),
            f"{block}.ffn_down.weight": matrix(DIM, FEED_FORWARD),
        }
    return tensors


def write_gguf(path, metadata, tensors, kind="F32"):
    """Write a file with its matrices in one block type; return what gguf itself reads of them."""
    writer = gguf.GGUFWriter(str(path), metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key != "general.architecture":
            add_value(writer, key, value)
    meant = {}
    for name, tensor in tensors.items():
        block = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        packed = gguf.quants.quantize(tensor, block)
        writer.add_tensor(name, packed, raw_dtype=block)
        meant[name] = gguf.quants.dequantize(packed, block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def add_value(writer, key, value):
    add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add.get(type(value), writer.add_uint32)(key, value)


def llama3_table(head_dim, theta, factor):
    """Return llama.cpp's divisors of the rotary frequencies, as its converter computes them."""
    low, high, original = 1.0, 4.0, 8192
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)
