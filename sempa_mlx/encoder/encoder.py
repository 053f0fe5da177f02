"""The encoder: sentences in, float32 vectors out, in input order.

Each distinct text is computed once; texts of like length share a batch; the template's leading
tokens are run once a batch. Results do not depend on batch size, order or padding.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from sempa_mlx.data.batching import group_by_length
from sempa_mlx.encoder.methods import METHODS, pool
from sempa_mlx.encoder.settings import SETTINGS_FILE, EncoderSettings, read_settings
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import write_text
from sempa_mlx.model.forward import SharedPrefixUnsupportedError, common_prefix, final_hidden
from sempa_mlx.model.head import hidden_size
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import CONFIG_FILE, dialled, load_adapter, read_adapter_config
from sempa_mlx.model.prompts import tokenize_texts
from sempa_mlx.runtime import dtype_name
from sempa_mlx.world import World

MIN_SHARED = 2  # fewer leading tokens are not worth a level of their own
PROBE = ("A short sentence", "One more sentence, somewhat longer than the first")


class Encoder:
    """A language model with one embedding method."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EncoderSettings | None = None,
        *,
        world: World | None = None,
    ) -> None:
        """Wrap a loaded model; `loaded` may carry an adapter.

        The processes of `world` share the texts, and all of them get all vectors.

        Raises:
            UsageError: there is no such method.
        """
        settings = settings or EncoderSettings()
        if settings.method not in METHODS:
            raise UsageError(
                Problem(f"no method `{settings.method}`", fix=f"one of: {', '.join(METHODS)}")
            )
        self.loaded = loaded
        self.settings = settings
        self._world = world or World()
        self.method = METHODS[settings.method]
        self._hidden_size = hidden_size(loaded.model)
        cut = settings.truncate_dim
        if cut is not None and not 1 <= cut <= self._hidden_size:
            raise UsageError(f"truncate_dim must lie in 1 to {self._hidden_size}, not {cut}")
        self._can_share: bool | None = None if self.method.pooling == "last" else False

    @classmethod
    def load(
        cls,
        source: str | Path = "smollm2-135m",
        *,
        adapter_path: str | Path | None = None,
        settings: EncoderSettings | None = None,
        dtype: str = "auto",
    ) -> Self:
        """Load a model, or a run folder with its adapter and its base.

        Args:
            source: model alias, folder, Hub id or GGUF file; or a run folder made by training.
            adapter_path: a run folder whose adapter goes on the model `source`.
            settings: how to embed; by default what the run folder says, else PromptEOL.
            dtype: the model's precision, or `auto`.

        Raises:
            ModelError: model or adapter cannot be loaded, or do not belong together.
        """
        run = Path(source) if (Path(source) / CONFIG_FILE).is_file() else None
        if run is not None:
            adapter_path, source = run, str(read_adapter_config(run)["model"])
        loaded = load_model(str(source), dtype=dtype)
        if adapter_path is not None:
            load_adapter(loaded, Path(adapter_path))
            settings = settings or read_settings(Path(adapter_path))
        return cls(loaded, settings)

    def with_scale(self, scale: float) -> "Encoder":
        """Return an encoder of the same model with its adapter at another scale."""
        return Encoder(self.loaded, replace(self.settings, adapter_scale=scale), world=self._world)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.settings.truncate_dim or self._hidden_size

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int = 4096,
        on_progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: any number of strings; an empty one gets the vector of the bare template.
            batch_tokens: upper bound of tokens in one forward pass, padding included.
            on_progress: called with the number of texts done by each batch.

        Returns:
            (len(texts), dim) float32 in input order, of unit length if `settings.normalize`.

        Warns:
            UserWarning: once, with the count, if texts were cut to `settings.max_tokens`.
        """
        if isinstance(texts, str):
            raise UsageError("encode takes a list of texts, not one string")
        vectors, num_truncated = self.encode_counted(
            texts, batch_tokens=batch_tokens, on_progress=on_progress
        )
        if num_truncated:
            warnings.warn(
                f"{num_truncated} texts were cut to {self.settings.max_tokens} tokens", stacklevel=2
            )
        return vectors

    def encode_counted(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int = 4096,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Embed texts as `encode` does; return the vectors and how many texts were cut."""
        slots: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            slots.setdefault(text, []).append(index)
        tokenized = tokenize_texts(
            list(slots), self.method.template, self.loaded.tokenizer, self.settings.max_tokens
        )
        places = list(slots.values())
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        groups = group_by_length([len(row) for row in tokenized.rows], batch_tokens)
        with dialled(self.loaded.model, self.settings.adapter_scale):
            for group in self._world.share(groups):
                done = 0
                found = self._forward([tokenized.rows[index] for index in group])
                for vector, index in zip(found, group, strict=True):
                    vectors[places[index]] = vector
                    done += len(places[index])
                if on_progress:
                    on_progress(done)
        return self._world.joined(vectors), tokenized.num_truncated

    def tokenize(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of each text in the method's template."""
        template, longest = self.method.template, self.settings.max_tokens
        return tokenize_texts(texts, template, self.loaded.tokenizer, longest).rows

    def _forward(self, rows: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Run one batch: (rows, dim) float32."""
        vectors = np.array(self.pooled(rows))[:, : self.dim]
        if self.settings.normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(norms > 0, norms, 1.0)
        return vectors

    def pooled(self, rows: Sequence[tuple[int, ...]]) -> mx.array:
        """Return the embeddings of tokenised texts as they leave the model, with gradients.

        The adapter works as it is dialled at the moment, whatever `settings.adapter_scale` says.
        Call it once before a gradient is taken through it: the first call looks at the model.

        Args:
            rows: what `tokenize` returned; one forward pass runs them all.

        Returns:
            (rows, hidden size) float32, neither cut nor of unit length.
        """
        shared = common_prefix(rows) if self.method.pooling == "last" else 0
        if shared < MIN_SHARED or not self._shares_exactly():
            shared = 0
        try:
            return self._pooled(rows, shared)
        except SharedPrefixUnsupportedError:  # longer than the model's attention window
            return self._pooled(rows, 0)

    def _pooled(self, rows: Sequence[tuple[int, ...]], shared: int) -> mx.array:
        hidden = final_hidden(self.loaded.model, rows, shared)
        lengths = mx.array([len(row) - shared for row in rows])
        return pool(hidden, lengths, self.method.pooling)

    def _shares_exactly(self) -> bool:
        """Tell, once, whether running the common prefix apart gives this model's own states."""
        if self._can_share is None:
            tokenized = tokenize_texts(
                PROBE, self.method.template, self.loaded.tokenizer, self.settings.max_tokens
            )
            shared = common_prefix(tokenized.rows)
            plain = np.array(self._pooled(tokenized.rows, 0))
            try:
                apart = np.array(self._pooled(tokenized.rows, shared))
            except (
                SharedPrefixUnsupportedError,
                ValueError,
                TypeError,
                AttributeError,
                IndexError,
            ):
                self._can_share = False
                return False
            bound = 1e-4 if self.loaded.dtype == mx.float32 else 5e-2
            self._can_share = bool(np.abs(plain - apart).max() <= bound * np.abs(plain).max())
        return self._can_share

    def describe(self) -> dict[str, Any]:
        """Return what made the vectors, for the sidecar of a file and for `encoder.json`."""
        template = self.method.template
        return {
            "format": 1,
            **asdict(self.settings),
            "pooling": self.method.pooling,
            "layer": -1,
            "template": {
                "name": template.name,
                "prefix": template.prefix,
                "suffix": template.suffix,
                "clean": template.clean,
                "fingerprint": template.fingerprint,
            },
            "dtype": dtype_name(self.loaded.dtype),
            "dim": self.dim,
            "model": {
                "name": self.loaded.location.reference,
                "revision": self.loaded.location.revision,
                "fingerprint": self.loaded.fingerprint,
            },
        }

    def save_settings(self, folder: Path) -> None:
        """Write `encoder.json` into a run folder."""
        text = json.dumps(self.describe(), indent=2, ensure_ascii=False) + "\n"
        write_text(folder / SETTINGS_FILE, text)
