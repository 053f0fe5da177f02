"""What a checkpoint belongs to: everything that decides how a run goes on."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from sempa_mlx.config import SempaConfig
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.run.inputs import RunData
from sempa_mlx.training.reference_store import row_key

# What does not decide how a run goes on; files count by content, the model by its weights.
FREE = frozenset(
    {
        "model.name",
        "model.revision",
        "data.train",
        "data.dev",
        "data.limit",
        "objective.kl_text",
        "train.iters",
        "train.micro_batch_tokens",  # cut the same sum another way, for want of memory
        "train.grad_checkpoint",
        "eval.data",
        "eval.pairs",
        "eval.patience",
        "sparse.start",
        "output.path",
        "output.save_every",
        "output.keep",
        "output.report_to",
    }
)


def run_identity(
    config: SempaConfig,
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    data: RunData,
    coder_digest: str = "",
) -> dict[str, str]:
    """Return everything that a run must share with a checkpoint to continue from it, as text."""
    settings = {
        f"{section}.{key}": json.dumps(value)
        for section, keys in config.model_dump(mode="json").items()
        for key, value in keys.items()
        if f"{section}.{key}" not in FREE
    }
    return settings | {
        "base weights": loaded.fingerprint,
        "base settings and tokenizer": loaded.setup,
        "dtype": str(loaded.dtype),
        "training rows": _digest(row_key(row) for row in rows),
        "dev pairs": _digest(repr(pair).encode() for pair in data.dev_task.pairs),
        "validation rows": _digest(repr(record).encode() for record in data.dev_records),
        "text to hold": _digest([data.kl_text.encode()]),
        "coder to start from": coder_digest,
    }


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
