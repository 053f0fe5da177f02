"""What a server serves: the names of its models, and what they can do."""

import time
from dataclasses import dataclass, field
from typing import Any

from sempa_mlx.model.load import FOLDER, GGUF_FILE, Location
from sempa_mlx.serve.faults import RequestError
from sempa_mlx.serve.worker import Worker

ADAPTED, EMBEDDING = ":sempa", ":embed"


@dataclass(frozen=True, slots=True)
class Served:
    """One base model: it chats without its adapter, with it (`:sempa`), and embeds (`:embed`).

    `dim` and `max_tokens` are of embeddings, `context` is of chats, in tokens.
    """

    base: str
    has_adapter: bool
    dim: int
    max_tokens: int
    context: int
    normalize: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def embedding_id(self) -> str:
        """The name of the embedding model."""
        return self.base + EMBEDDING

    @property
    def chat_ids(self) -> tuple[str, ...]:
        """The names of the chat models."""
        return (self.base, self.base + ADAPTED) if self.has_adapter else (self.base,)

    def check_embedding(self, model: str) -> None:
        """Check a name: every name of this model stands for its one embedding model.

        Raises:
            RequestError: 404.
        """
        if model not in (self.embedding_id, *self.chat_ids):
            raise self._unknown(self.embedding_id)

    def is_adapted(self, model: str) -> bool:
        """Tell whether the adapter is on in the chat model of this name.

        Raises:
            RequestError: 404, there is no such chat model.
        """
        if model not in self.chat_ids:
            raise self._unknown(*self.chat_ids)
        return model != self.base

    def describe(self, model: str | None = None) -> dict[str, Any]:
        """Describe all models, or the one of a name, in OpenAI's shape.

        Raises:
            RequestError: 404, there is no such model.
        """
        embedding = {"task": "embedding", "dimensions": self.dim, "max_tokens": self.max_tokens}
        chat = {"task": "chat", "context_length": self.context}
        facts = dict.fromkeys(self.chat_ids, chat) | {self.embedding_id: embedding}
        found = {name: self._entry(name) | more for name, more in facts.items()}
        if model is None:
            return {"object": "list", "data": list(found.values())}
        if model not in found:
            raise self._unknown(*found)
        return found[model]

    def _entry(self, name: str) -> dict[str, Any]:
        head = {"id": name, "object": "model", "created": self.created}
        return head | {"owned_by": "sempa-mlx"}

    def _unknown(self, *known: str) -> RequestError:
        what = f"no such model here; there is {' and '.join(known)}"
        return RequestError(404, what, param="model", code="model_not_found")


def model_name(location: Location) -> str:
    """Return what clients call a model: its alias or Hub id, or its folder's last name."""
    if location.origin == FOLDER:
        return location.path.resolve().name
    return location.path.stem if location.origin == GGUF_FILE else location.name


def served_by(worker: Worker, name: str | None = None) -> Served:
    """Describe what a worker serves, under a name of its own or the model's."""
    encoder = worker.encoder
    return Served(
        name or model_name(encoder.loaded.location),
        worker.has_adapter,
        encoder.dim,
        encoder.settings.max_tokens,
        worker.context,
        encoder.settings.normalize,
    )
