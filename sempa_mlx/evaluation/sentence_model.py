"""An encoder in the form that other libraries evaluate: sentence-transformers and MTEB.

    evaluator = EmbeddingSimilarityEvaluator(left, right, scores)
    evaluator(SentenceModel(Encoder.load("adapters")))
    mteb.evaluate(SentenceModel(Encoder.load("adapters")), mteb.get_tasks(tasks=["STS17"]))

Neither library is needed to import this module.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.errors import UsageError
from sempa_mlx.evaluation.stats import cosines

TASK_PROMPTS = ("prompt", "prompt_name")


class ModelCard:
    """Keeps what sentence-transformers' evaluators report to a model."""

    def __init__(self) -> None:
        """Know no metrics yet."""
        self.metrics: dict[str, float] = {}

    def set_evaluation_metrics(
        self,
        _evaluator: object,
        metrics: Mapping[str, float],
        _epoch: int = 0,
        _step: int = 0,
    ) -> None:
        """Add the metrics of one evaluation."""
        self.metrics |= metrics


class SentenceModel:
    """Answers `encode` and `similarity` as `SentenceTransformer` and MTEB's `EncoderProtocol` do.

    Vectors are those of the encoder, method and adapter included; how texts are batched is its own
    business, so `batch_size`, `device` and the like have no effect.
    """

    similarity_fn_name = "cosine"

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        self.encoder = encoder
        self.model_card_data = ModelCard()

    def encode(
        self,
        sentences: str | Iterable[str] | Iterable[Mapping[str, Any]],
        *,
        precision: str | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
        **options: Any,  # noqa: ANN401 - each library has its own
    ) -> Any:  # noqa: ANN401 - a torch.Tensor if asked for
        """Embed sentences.

        Args:
            sentences: texts, or batches that hold texts under the key `text`, as MTEB's loaders.
            precision: `float32` or None.
            normalize_embeddings: give vectors unit length even if the encoder does not.
            truncate_dim: keep so many leading dimensions.
            convert_to_tensor: return a torch tensor.
            options: what else callers send; ignored, except for prompts.

        Returns:
            (n, dim) float32 numpy array or tensor; (dim,) for one string.

        Raises:
            UsageError: a prompt, another precision, other data than text, or more dimensions than
                there are.
        """
        unknown = [name for name in TASK_PROMPTS if options.get(name) is not None]
        if unknown:
            raise UsageError(f"{unknown[0]} is not taken: the prompt belongs to the method")
        if precision not in (None, "float32"):
            raise UsageError(f"precision must be float32, not {precision}")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.encoder.dim:
            raise UsageError(
                f"truncate_dim must lie in 1 to {self.encoder.dim}, not {truncate_dim}"
            )
        vectors = self.encoder.encode(_texts(sentences))[:, :truncate_dim]
        if normalize_embeddings or (truncate_dim is not None and self.encoder.settings.normalize):
            vectors = at_unit_length(vectors)
        found = vectors[0] if isinstance(sentences, str) else vectors
        return _tensor(found) if convert_to_tensor else found

    def similarity(self, left: Any, right: Any) -> np.ndarray:  # noqa: ANN401 - arrays of any kind
        """Return the cosines of all pairs of rows, (rows of left, rows of right) float64."""
        left, right = np.atleast_2d(np.asarray(left)), np.atleast_2d(np.asarray(right))
        return np.stack([cosines(np.broadcast_to(row, right.shape), right) for row in left])

    def similarity_pairwise(self, left: Any, right: Any) -> np.ndarray:  # noqa: ANN401
        """Return the cosines of rows in the same place, (rows,) float64."""
        return cosines(np.asarray(left), np.asarray(right))

    @property
    def mteb_model_meta(self) -> Any:  # noqa: ANN401 - of a package that may not be there
        """Return what MTEB files results under: model, adapter and method."""
        from mteb.models import ModelMeta

        described = self.encoder.describe()
        return ModelMeta.create_empty(
            {
                "name": f"sempa-mlx/{described['model']['name'].replace('/', '__')}",
                "revision": self.encoder.vectors_key,
                "embed_dim": self.encoder.dim,
                "max_tokens": self.encoder.settings.max_tokens,
                "similarity_fn_name": self.similarity_fn_name,
            }
        )


def _texts(sentences: str | Iterable[str] | Iterable[Mapping[str, Any]]) -> list[str]:
    if isinstance(sentences, str):
        return [sentences]
    found: list[object] = []
    for item in sentences:
        if isinstance(item, Mapping):
            if "text" not in item:
                raise UsageError(f"only text can be embedded, not {', '.join(item)}")
            text = item["text"]
            found += text if isinstance(text, list | tuple) else [text]
        else:
            found.append(item)
    texts = [str(each) for each in found if isinstance(each, str)]  # NumPy's become Python's
    if len(texts) < len(found):
        kinds = sorted({type(each).__name__ for each in found if not isinstance(each, str)})
        raise UsageError(f"only text can be embedded, not {', '.join(kinds)}")
    return texts


def _tensor(vectors: np.ndarray) -> Any:  # noqa: ANN401 - of a package that may not be there
    import torch

    return torch.from_numpy(vectors)
