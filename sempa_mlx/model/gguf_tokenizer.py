"""The tokenizer inside a GGUF file, rebuilt with the `tokenizers` library.

Two kinds exist in the Llama family: byte-level BPE (`gpt2`: SmolLM, Llama 3) with a named
pre-tokenizer, and SentencePiece BPE (`llama`: Llama 1 and 2, TinyLlama, Mistral) with scores.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sempa_mlx.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# llama.cpp's names for the ways of cutting text before merging.
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "default": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def build_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Build the Hugging Face tokenizer that a GGUF file describes.

    Args:
        metadata: the file's metadata, as plain Python values.

    Raises:
        ModelError: the tokenizer kind or its pre-tokenizer is not known, or its tables are missing.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tables = ("tokens", "merges" if kind == "gpt2" else "scores")
    missing = [name for name in tables if f"tokenizer.ggml.{name}" not in metadata]
    if kind in ("gpt2", "llama") and missing:
        raise ModelError(f"the GGUF tokenizer lacks {' and '.join(missing)}")
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(metadata)
    elif kind == "llama":
        tokenizer = _sentencepiece_bpe(metadata)
    else:
        raise ModelError(f"GGUF tokenizer kind {kind!r} is not supported")
    tokenizer.add_special_tokens(_tokens_of_type(metadata, CONTROL, special=True))
    tokenizer.add_tokens(_tokens_of_type(metadata, USER_DEFINED, special=False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=metadata.get("llama.context_length", 2048),
        **_named_special_tokens(metadata),
    )
    fast.chat_template = metadata.get("tokenizer.chat_template")
    # Where a file is silent, llama.cpp adds it for SentencePiece and for Llama 3's pre-tokenizer.
    is_llama3 = metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    _add_bos(fast, metadata, default=kind == "llama" or is_llama3)
    return fast


def _tokens_of_type(metadata: dict[str, Any], wanted: int, *, special: bool) -> list[AddedToken]:
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind == wanted
    ]


def _named_special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {}
    for gguf_name, short in names.items():
        index = metadata.get(f"tokenizer.ggml.{gguf_name}_token_id")
        if index is not None:
            found[f"{short}_token"] = _token(tokens, index)
    return found


def _token(tokens: list[str], index: object) -> str:
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise ModelError(f"the GGUF tokenizer names token {index!r} of {len(tokens)}")
    return tokens[index]


def _byte_level_bpe(metadata: dict[str, Any]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(f"GGUF pre-tokenizer {name!r} is not supported; known: {known}")
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    # The library raises a bare Exception.
    strange = [m for m in merges if len(m) != 2 or not vocabulary.keys() >= {*m, "".join(m)}]
    if strange:
        what = f"{len(strange)} merges of the GGUF tokenizer are of no tokens: {strange[0]!r}"
        raise ModelError(what)
    model = BPE(vocab=vocabulary, merges=merges, ignore_merges=name == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: dict[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges_from_scores(vocabulary, metadata["tokenizer.ggml.scores"])
    unknown = _token(tokens, metadata.get("tokenizer.ggml.unknown_token_id", 0))
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        back.append(decoders.Strip(content=" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Derive BPE merges from piece scores: the better a piece's score, the earlier its merges.

    Source: the rule by which Hugging Face converts SentencePiece BPE vocabularies.
    """
    merges = []
    for piece, index in vocabulary.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(a, b, scores[index]) for a, b in known]
    merges.sort(key=lambda merge: merge[2], reverse=True)
    return [(a, b) for a, b, _score in merges]


def _add_bos(
    tokenizer: PreTrainedTokenizerFast, metadata: dict[str, Any], *, default: bool
) -> None:
    """Prepend the begin token where the file asks for it, or by `default` if it is silent."""
    from tokenizers.processors import TemplateProcessing

    token, index = tokenizer.bos_token, tokenizer.bos_token_id
    if token is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )
