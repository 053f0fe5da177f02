"""Tiny models and tokenizers, built in code: nothing is downloaded, everything is seeded."""

import functools
import hashlib
import importlib
import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sempa_mlx.config import LoraConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.load import LoadedModel, Location
from sempa_mlx.model.lora import adapter_weights, attach

VOCABULARY = 128
WINDOW = 6  # of the Gemma 3 model: shorter than nearly every row
START, END, SEPARATOR = "<|im_start|>", "<|im_end|>", "<|file_sep|>"
CONTROL_TOKENS = (START, END, SEPARATOR)  # the last has no role such as begin or end of sequence
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "Two dogs run on the grass while a man is watching them.",
    'Keep the same meaning of this sentence: "S", while making some changes.',
    'This sentence : "A cat sleeps on the warm stone." means in one word:"',
    "A woman in 2024 reads 17 books; the children don't, they're playing outside.",
    "user assistant system You are a helpful assistant",
)

_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
CONFIGS: dict[str, dict] = {
    "llama": _COMMON | {"num_hidden_layers": 3, "head_dim": 8, "rope_theta": 10000.0},
    "llama-untied": _COMMON | {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": _COMMON | {"rope_theta": 1e6},
    "qwen3": _COMMON
    | {
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    # Caps this low bend every score; head groups of 2 need masks with one axis more.
    "gemma2": _COMMON
    | {
        "head_dim": 8,
        "query_pre_attn_scalar": 8.0,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": _COMMON
    | {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "lfm2": _COMMON  # short convolutions beside attention
    | {
        "max_position_embeddings": 512,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    },
}
SHARING = ("llama", "llama-untied", "qwen2", "qwen3", "gemma2")
MISFITS = ("gemma3_text", "lfm2")


def tiny_config(kind, **changes):
    """Return the Hugging Face config of a tiny model, as a dictionary."""
    return {"model_type": kind} | CONFIGS.get(kind, _COMMON) | changes


def tiny_model(kind="llama", seed=0, **changes):
    """Build a random float32 model of mlx-lm in evaluation mode; no weight is at its default."""
    config = tiny_config(kind, **changes)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    keys = mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters())))
    weights = []
    for (name, weight), key in zip(tree_flatten(model.parameters()), keys, strict=True):
        noise = mx.random.normal(weight.shape, key=key)
        if weight.ndim > 1:
            weights.append((name, 1.5 * noise / weight.shape[-1] ** 0.5))
        else:
            weights.append((name, weight + 0.2 * noise))
    model.update(tree_unflatten(weights))
    model.freeze()
    model.eval()
    mx.eval(model.parameters())
    return model


@functools.cache
def _trained_tokenizer():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True) for token in CONTROL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(chat_template=CHATML):
    """Build a byte-level BPE tokenizer of 340 tokens, as mlx-lm wraps it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = chat_template
    return TokenizerWrapper(fast)


def tiny_loaded(kind="llama", seed=0, **changes):
    """Build a loaded model whose vocabulary is the tiny tokenizer's."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, seed, **({"vocab_size": len(tokenizer.get_vocab())} | changes))
    location = Location(f"tiny-{kind}", Path("nowhere"), "code")
    return LoadedModel(model, tokenizer, location, mx.float32, weights_hash(model))


def weights_hash(model):
    """Return hex digits that tell tiny models apart."""
    digest = hashlib.sha256()
    for name, value in sorted(tree_flatten(model.parameters())):
        digest.update(name.encode() + bytes(memoryview(value)))
    return digest.hexdigest()[:16]


def write_tiny_folder(path, kind="llama", seed=0, **changes):
    """Write a model folder that mlx-lm loads; return the model that is in it."""
    path.mkdir(parents=True, exist_ok=True)
    loaded = tiny_loaded(kind, seed, **changes)
    config = tiny_config(kind, vocab_size=len(loaded.tokenizer.get_vocab()), **changes)
    config["eos_token_id"] = loaded.tokenizer.eos_token_id
    (path / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(loaded.model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    loaded.tokenizer._tokenizer.save_pretrained(path)
    return loaded.model


def move_adapter(model, size):
    """Move a fresh adapter away from the base: noise of this size on lora_b and DoRA's m."""
    for index, (name, value) in enumerate(adapter_weights(model).items()):
        noise = size * mx.random.normal(value.shape, key=mx.random.key(index))
        if name.endswith("lora_b"):
            model.load_weights([(name, value + noise)], strict=False)
        elif name.endswith(".m"):  # norms of rows: noise relative to them
            model.load_weights([(name, value * (1 + noise))], strict=False)


def make_rows(count=8, candidates=2, *, seed=0, shortest=3):
    """Draw rows that share their first three prompt tokens; lengths differ.

    Prompts have 5 to 8 tokens, completions `shortest` to 11.
    """
    random = np.random.default_rng(seed)

    def tokens(low, high):
        return tuple(random.integers(1, VOCABULARY, random.integers(low, high)).tolist())

    return [
        TokenRow((1, 2, 3, *tokens(2, 6)), tuple(tokens(shortest, 12) for _ in range(candidates)))
        for _ in range(count)
    ]


def put_adapter(model, size=0.1):
    """Put an adapter on a model that changes what it says."""
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    move_adapter(model, size)
    model.eval()


def control_pattern():
    """Return a pattern that finds every control token of the tiny tokenizer."""
    return re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
