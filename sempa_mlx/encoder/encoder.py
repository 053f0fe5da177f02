"""The encoder: sentences in, float32 vectors out, in input order.

Each distinct text is computed once; texts of like length share a batch, on a CPU without padding;
the template's leading tokens are run once a batch. Results do not depend on batch size or order.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from sempa_mlx.data.batching import Passes
from sempa_mlx.encoder.batch import Batch, one_row_a_prompt
from sempa_mlx.encoder.description import describe, vectors_key
from sempa_mlx.encoder.interventions import PLAIN, Parameters
from sempa_mlx.encoder.methods import find_method
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.settings import EncoderSettings, read_settings, write_settings
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.model.blocks import require_attention
from sempa_mlx.model.head import hidden_size
from sempa_mlx.model.hidden_states import Row, StateReader
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.prompt_shape import prompt_shape
from sempa_mlx.model.prompts import TokenizedTexts, tokenize_texts
from sempa_mlx.model.recorded import load_with_adapter
from sempa_mlx.world import World


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
            UsageError: there is no such method, or this model or method has no such parameter.
            ModelError: the method changes attention, and the model has blocks without it.
        """
        settings = settings or EncoderSettings()
        self.loaded = loaded
        self.settings = settings
        self.method = find_method(settings.method)
        self._reader = StateReader(loaded)
        if self.method.intervention is not PLAIN:
            require_attention(loaded.model)
        self.parameters = self.method.parameters(
            self._reader.depth,
            layer=settings.layer,
            block=settings.block,
            strength=settings.strength,
        )
        self._shapes = tuple(
            prompt_shape(template, loaded.tokenizer) for template in self.method.templates
        )
        self._world = world or World()
        self.hidden_size = hidden_size(loaded.model)
        cut = settings.truncate_dim
        if cut is not None and not 1 <= cut <= self.hidden_size:
            raise UsageError(f"truncate_dim must lie in 1 to {self.hidden_size}, not {cut}")
        if settings.post is not None and settings.post.vectors != self.vectors_key:
            what = f"the fitted {settings.post.kind} belongs to other vectors"
            raise UsageError(Problem(what, fix="fit it for this model, adapter and method"))

    @classmethod
    def load(
        cls,
        source: str | Path = "smollm2-135m",
        *,
        adapter_path: str | Path | None = None,
        settings: EncoderSettings | None = None,
        revision: str | None = None,
        dtype: str = "auto",
    ) -> Self:
        """Load a model, or a run folder with its adapter and its base.

        Args:
            source: model alias, folder, Hub id or GGUF file; or a run folder made by training, or
                the packaged adapter `smollm2-135m-nli`.
            adapter_path: a run folder, or the packaged one, whose adapter goes on `source`.
            settings: how to embed; by default what the run folder says, else PromptEOL.
            revision: a Hub commit, branch or tag of `source`; a run folder says its base's itself.
            dtype: the model's precision, or `auto`.

        Raises:
            ModelError: model or adapter cannot be loaded, or do not belong together.
        """
        loaded, run = load_with_adapter(source, adapter_path, revision=revision, dtype=dtype)
        return cls(loaded, settings or (None if run is None else read_settings(run)))

    def with_scale(self, scale: float) -> "Encoder":
        """Return an encoder of the same model with its adapter at another scale.

        Raises:
            UsageError: the vectors are mapped by a fit, which belongs to one scale.
        """
        return Encoder(self.loaded, replace(self.settings, adapter_scale=scale), world=self._world)

    def raw(self) -> "Encoder":
        """Return this encoder without map, cut and unit length: vectors as they leave the model."""
        settings = replace(self.settings, normalize=False, truncate_dim=None, post=None)
        return Encoder(self.loaded, settings, world=self._world)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.settings.truncate_dim or self.hidden_size

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
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("encode takes a list of texts, not one string or anything else")
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
        layer = self.parameters.index(self.depth)
        found, num_truncated = self.read(
            texts, (layer,), batch_tokens=batch_tokens, on_progress=on_progress
        )
        return self._finished(found[0, 0]), num_truncated

    def read(
        self,
        texts: Sequence[str],
        layers: Sequence[int],
        variants: Sequence[Parameters] | None = None,
        *,
        batch_tokens: int = 4096,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Embed texts at several layers, under several parameters; passes are shared where it goes.

        Args:
            texts: any number of strings.
            layers: indices from 0 (embeddings) to `depth` (final states).
            variants: parameters of the method, whose own layers do not count; by default those of
                this encoder alone.
            batch_tokens: upper bound of tokens in one forward pass, padding included.
            on_progress: called with the number of texts done by each batch.

        Returns:
            (variants, layers, len(texts), hidden size) float32 as they leave the model, neither cut
            nor of unit length, and how many texts were cut.
        """
        variants = (self.parameters,) if variants is None else variants
        slots: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            slots.setdefault(text, []).append(index)
        prompts = self._prompts(list(slots))
        rows = list(zip(*(tokenized.rows for tokenized in prompts), strict=True))
        places = list(slots.values())
        shape = (len(variants), len(layers), len(texts), self.hidden_size)
        vectors = np.zeros(shape, dtype=np.float32)
        lengths = [max(map(len, each)) for each in rows]
        if self._world.size > 1:  # a pass for each process at least
            batch_tokens = min(batch_tokens, -(-sum(lengths) // self._world.size))
        groups = self.passes(lengths, batch_tokens, layers).groups
        with dialled(self.loaded.model, self.settings.adapter_scale):
            for group in self._world.share(groups):
                done = 0
                found = self._forward([rows[index] for index in group], layers, variants)
                for place, index in enumerate(group):
                    vectors[:, :, places[index]] = found[:, :, [place]]
                    done += len(places[index])
                if on_progress:
                    on_progress(done)
        return self._world.joined(vectors), max(each.num_truncated for each in prompts)

    @property
    def depth(self) -> int:
        """The number of the model's blocks."""
        return self._reader.depth

    @property
    def reads_last_layer(self) -> bool:
        """Whether vectors are states behind the model's last norm, which its head can read."""
        return self.parameters.index(self.depth) == self.depth

    @property
    def vectors_key(self) -> str:
        """What makes the vectors as they leave the model, as 16 hex digits."""
        return vectors_key(self.loaded, self.method, self.parameters, self.settings)

    def tokenize(self, texts: Sequence[str]) -> tuple[Row, ...]:
        """Return the tokens of each text in the method's template.

        Raises:
            UsageError: the method has several templates.
        """
        if len(self.method.templates) > 1:
            raise UsageError(f"method `{self.method.name}` has more than one prompt a text")
        return self._prompts(texts)[0].rows

    def _prompts(self, texts: Sequence[str]) -> list[TokenizedTexts]:
        """Tokenise texts in each of the method's templates."""
        return [
            tokenize_texts(texts, template, self.loaded.tokenizer, self.settings.max_tokens)
            for template in self.method.templates
        ]

    def _forward(
        self,
        texts: Sequence[tuple[Row, ...]],
        layers: Sequence[int],
        variants: Sequence[Parameters],
    ) -> np.ndarray:
        """Run one batch of texts: (variants, layers, texts, hidden size) float32."""
        batch = self._batch(one_row_a_prompt(texts))
        found = self.method.intervention.embed(batch, variants, layers)
        return np.array(mx.stack([each[layer] for each in found for layer in layers])).reshape(
            len(variants), len(layers), len(texts), -1
        )

    def _batch(self, rows: tuple[tuple[Row, ...], ...]) -> Batch:
        return Batch(self._reader, self._shapes, rows, self.method.pooling)

    def _finished(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors, cut them and give them unit length, as the settings say."""
        if self.settings.post is not None:
            vectors = self.settings.post.apply(vectors)
        vectors = vectors[:, : self.dim]
        return at_unit_length(vectors) if self.settings.normalize else vectors

    def passes(
        self, lengths: Sequence[int], token_budget: int, layers: Sequence[int] | None = None
    ) -> Passes:
        """Group prompts for reading `layers`, or what `pooled` reads: see `StateReader.passes`."""
        read = {self.parameters.index(self.depth)} if layers is None else set(layers)
        ends = self.method.reads_last and read == {self.depth}
        return self._reader.passes(lengths, token_budget, ends=ends)

    def pooled(self, rows: Sequence[Row]) -> mx.array:
        """Return the embeddings of tokenised texts as they leave the model, with gradients.

        The adapter works as it is dialled at the moment, whatever `settings.adapter_scale` says.
        Call it once before a gradient is taken through it: the first call looks at the model.

        Args:
            rows: what `tokenize` returned; one forward pass runs them all.

        Returns:
            (rows, hidden size) float32, neither cut nor of unit length.
        """
        layer = self.parameters.index(self.depth)
        batch = self._batch((tuple(rows),))
        return self.method.intervention.embed(batch, (self.parameters,), (layer,))[0][layer]

    def describe(self) -> dict[str, Any]:
        """Return what made the vectors, for the sidecar of a file and for `encoder.json`."""
        return describe(self.loaded, self.method, self.parameters, self.settings, self.dim)

    def save_settings(self, folder: Path) -> None:
        """Write `encoder.json` into a run folder, and the fitted map beside it if there is one."""
        write_settings(folder, self.describe(), self.settings.post)
