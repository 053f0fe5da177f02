"""Which model this is: digests of its weights and of its setup, the same in every place."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

CHUNK = 4096
CHUNKS = 256
# Settings of a folder that change no hidden state, or that the weights or the tokenizer show.
NEUTRAL = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("use_cache", "quantization", "quantization_config"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }
)
PROBES = (  # what a tokenizer makes of these tells its ways: case, blanks, digits, scripts, forms
    'This sentence : "A Man can\'t PLAY 12,345.67 guitars" means in one word:"',
    "  two  blanks\tand\n\nlines\r\n",
    "naïve café, cafe\u0301 straße ﬁne ½ № ™",
    "Москва 東京の夜 서울 مرحبا שלום नमस्ते ไทย 😀👩‍👩‍👧",
    "x = f(y)[0] -> {'a': 1e-5} // <|im_end|></s> [INST] http://a.b/c?d=e",
)


def weight_files(path: Path) -> list[Path]:
    """List the files that hold a model's weights: the GGUF file itself, or a folder's shards."""
    return [path] if path.is_file() else sorted(path.glob("model*.safetensors"))


def fingerprint(files: Iterable[Path]) -> str:
    """Hash each file's size and evenly spread pieces of it: 16 hex digits.

    Up to 1 MiB is hashed whole; of a larger file 256 pieces of 4 KiB, its first and last among
    them. That tells a base from its fine-tuned variants without reading gigabytes; it is no
    defence against somebody who wants two models to look alike.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        pieces = max(1, min(CHUNKS, -(-size // CHUNK)))
        span = max(0, size - CHUNK)
        with file.open("rb") as handle:
            for piece in range(pieces):
                handle.seek(piece * span // max(1, pieces - 1))
                digest.update(handle.read(CHUNK))
    return digest.hexdigest()[:16]


def setup_digest(config: Mapping[str, Any], tokenizer: TokenizerWrapper) -> str:
    """Hash what else than weights makes a model's outputs: 16 hex digits.

    That is its settings, its vocabulary, and what the tokenizer makes of some texts, so that it
    does not change with the versions of the libraries.

    Args:
        config: settings under the keys of a Hugging Face config.
        tokenizer: of the model.
    """
    settings = {name: config[name] for name in sorted(config.keys() - NEUTRAL)}
    vocabulary = sorted(tokenizer.get_vocab().items())
    tokens = [tokenizer.encode(text) for text in PROBES]
    text = json.dumps([settings, vocabulary, tokens], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
