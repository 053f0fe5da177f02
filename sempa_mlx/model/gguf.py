"""GGUF files of the Llama family: metadata and weights in the form mlx-lm's Llama takes.

Read through `mx.load`; of which types, `gguf_header` says. llama.cpp stores the rows of q and k in
the order its rotary kernel wants; that permutation is undone here. The tokenizer is built by
`gguf_tokenizer`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import llama

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.gguf_header import BF16, check_header

QUANT_GROUP = 32  # every GGUF block type that mx.load keeps packed has 32 weights to a scale
BLOCK_NAMES = {
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
TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
SIZES = (
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.context_length",
)
REALS = (
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
    "llama.rope.scaling.factor",
)
LLAMA3_ROPE_FACTORS = (8.0, 32.0)  # Llama 3.1 and 3.2; the file holds only the resulting table


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The contents of one GGUF file: tensors by name, metadata as plain Python values."""

    path: Path
    tensors: dict[str, mx.array]
    metadata: dict[str, Any]


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file.

    Raises:
        ModelError: the file is unreadable, or not of the Llama family.
    """
    try:
        types = check_header(path)
        loaded: Any = mx.load(str(path), return_metadata=True)
        tensors, raw = loaded
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            Problem(f"not a readable GGUF file ({error})", place=str(path), fix="download it again")
        ) from error
    metadata = {key: _plain(value) for key, value in raw.items()}
    check_family(metadata, path)
    for name in (name for name, kind in types.items() if kind == BF16):
        if not mx.isfinite(tensors[name]).all().item():  # MLX makes float16 of it
            what = f"{name} is of type BF16 and holds weights beyond float16"
            raise ModelError(Problem(what, str(path), fix="take a file of F32 or Q8_0"))
    return GgufFile(path, tensors, metadata)


def check_family(metadata: dict[str, Any], path: Path) -> None:
    """Refuse a file that is not of the dense Llama family.

    Raises:
        ModelError: it is of another.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or metadata.get("llama.expert_count"):
        raise ModelError(
            Problem(
                f"GGUF architecture {architecture!r} is not supported, only dense `llama`",
                place=str(path),
                fix="use the model's safetensors folder or Hub id instead",
            )
        )


def _plain(value: Any) -> Any:  # noqa: ANN401 - metadata holds any scalar or list
    """Turn mlx scalars and arrays of the metadata into Python numbers and lists."""
    if isinstance(value, mx.array):
        return value.item() if value.size == 1 else value.tolist()
    return value


def model_config(gguf: GgufFile) -> dict[str, Any]:
    """Return the file's hyperparameters under the keys of a Hugging Face Llama config.

    Raises:
        ModelError: its rotary embeddings are not supported.
        KeyError: a hyperparameter or the embeddings are missing.
        ValueError: a hyperparameter is no number above 0, or there are more blocks than tensors.
    """
    meta = gguf.metadata
    _check_numbers(meta, len(gguf.tensors))
    heads = meta["llama.attention.head_count"]
    hidden = meta["llama.embedding_length"]
    head_dim = meta.get("llama.attention.key_length") or hidden // heads
    if head_dim == 0:
        raise ValueError(f"{heads} heads share {hidden} numbers")
    if meta.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise ModelError(Problem("partial rotary embeddings are not supported", str(gguf.path)))
    embedding = gguf.tensors["token_embd.weight"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": meta["llama.block_count"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": meta.get("llama.context_length", 2048),
        "rope_theta": meta.get("llama.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(gguf, head_dim),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
    }


def _check_numbers(meta: dict[str, Any], num_tensors: int) -> None:
    whole = {name: meta[name] for name in SIZES if name in meta}
    reals = {name: meta[name] for name in REALS if name in meta}
    for name, value in (whole | reals).items():
        kind = int if name in whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise ValueError(f"{name} is no number above 0")
    # Each block is built before the tensors are looked at.
    if whole.get("llama.block_count", 0) > num_tensors:
        raise ValueError(f"llama.block_count is above the number of tensors, {num_tensors}")


def _rope_scaling(gguf: GgufFile, head_dim: int) -> dict[str, Any] | None:
    meta = gguf.metadata
    if "rope_freqs.weight" in gguf.tensors:
        return _llama3_scaling(gguf, head_dim)
    kind = meta.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": meta["llama.rope.scaling.factor"]}
    raise ModelError(Problem(f"rope scaling {kind!r} is not supported", str(gguf.path)))


def _llama3_scaling(gguf: GgufFile, head_dim: int) -> dict[str, Any]:
    """Find the Llama 3 settings whose table of frequency divisors equals the stored one."""
    stored = np.array(gguf.tensors["rope_freqs.weight"].astype(mx.float32))
    theta = gguf.metadata["llama.rope.freq_base"]
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high = 8192, 1.0, 4.0
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    for factor in LLAMA3_ROPE_FACTORS:
        divisors = 1.0 / ((1 - smooth) / factor + smooth)
        if stored.shape == divisors.shape and np.allclose(stored, divisors, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ModelError(Problem("unknown table of rotary frequencies", str(gguf.path)))


def build_model(gguf: GgufFile, *, keep_quantized: bool) -> llama.Model:
    """Build mlx-lm's Llama with the weights of the file.

    Args:
        gguf: the file, as read.
        keep_quantized: leave packed matrices packed (4 or 8 bit, groups of 32); otherwise they are
            unpacked exactly, in float32.

    Raises:
        ModelError: tensors are missing, unknown or of the wrong shape (all at once), or the
            metadata that sizes the model is missing or contradicts them.
    """
    try:
        config = model_config(gguf)
        weights = _named_weights(gguf, config)
        packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
        if not keep_quantized:
            weights = _unpack(weights, packed)
    except KeyError as error:
        raise ModelError(Problem(f"{error} is missing", place=str(gguf.path))) from error
    except ValueError as error:
        what = f"tensors and metadata disagree ({error})"
        raise ModelError(Problem(what, place=str(gguf.path))) from error
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if keep_quantized:
        for name in packed:
            bits = _bits(weights[f"{name}.weight"], weights[f"{name}.scales"])
            nn.quantize(
                model,
                group_size=QUANT_GROUP,
                bits=bits,
                class_predicate=lambda path, _module, wanted=name: path == wanted,
            )
    _load_strict(model, weights, gguf.path)
    return model


def _named_weights(gguf: GgufFile, config: dict[str, Any]) -> dict[str, mx.array]:
    """Rename the tensors to mlx-lm's names and undo the rotary permutation."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    named = {}
    for full_name, tensor in gguf.tensors.items():
        if full_name == "rope_freqs.weight":
            continue
        stem, _, kind = full_name.rpartition(".")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".", 2)
            if part in heads:
                tensor = _unpermute(tensor, heads[part])
            name = f"model.layers.{layer}.{BLOCK_NAMES.get(part, part)}.{kind}"
        else:
            name = f"{TOP_NAMES.get(stem, stem)}.{kind}"
        named[name] = tensor
    return named


def _unpermute(rows: mx.array, num_heads: int) -> mx.array:
    """Put rows stored as interleaved rotary pairs back into two halves, head by head."""
    shape = rows.shape
    pairs = rows.reshape(num_heads, shape[0] // num_heads // 2, 2, *shape[1:])
    return pairs.swapaxes(1, 2).reshape(shape)


def _bits(packed: mx.array, scales: mx.array) -> int:
    return packed.shape[-1] * 32 // (scales.shape[-1] * QUANT_GROUP)


def _unpack(weights: dict[str, mx.array], packed: set[str]) -> dict[str, mx.array]:
    """Dequantise in float32, so that no rounding is added to what the file says."""
    plain = {
        name: value
        for name, value in weights.items()
        if not name.endswith((".scales", ".biases")) and name.removesuffix(".weight") not in packed
    }
    for name in packed:
        weight, scales = weights[f"{name}.weight"], weights[f"{name}.scales"]
        plain[f"{name}.weight"] = mx.dequantize(
            weight,
            scales.astype(mx.float32),
            weights[f"{name}.biases"].astype(mx.float32),
            group_size=QUANT_GROUP,
            bits=_bits(weight, scales),
        )
    return plain


def _load_strict(model: nn.Module, weights: dict[str, mx.array], path: Path) -> None:
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        problems = [Problem(line.strip(), place=str(path)) for line in str(error).splitlines()]
        raise ModelError(problems) from error
