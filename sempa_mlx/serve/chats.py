"""Chats that are generated together, a token each a step, by mlx-lm's batched generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_lm.generate import BatchGenerator

from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.sampling import Draw
from sempa_mlx.serve.text_stream import TextStream

PREFILL_TOKENS = 256  # of a prompt a step, so that embeddings need not wait for a long one

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step adds to an answer: text (which may be none), tokens so far, why it ended."""

    text: str
    num_tokens: int
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A chat that can run: the strength of the adapter, the prompt, how to draw and to end."""

    factor: float
    prompt: tuple[int, ...]
    max_tokens: int
    draw: Draw
    stops: tuple[str, ...]


@dataclass(slots=True)
class _Row:
    key: int
    text: TextStream
    num_tokens: int = 0


class ChatBatch:
    """Chats at one strength of the adapter."""

    def __init__(self, loaded: LoadedModel, factor: float) -> None:
        """Begin without chats."""
        self._tokenizer = loaded.tokenizer
        self._model = loaded.model
        self._factor = factor
        ends = [[token] for token in sorted(loaded.tokenizer.eos_token_ids)]
        self._generator = BatchGenerator(
            loaded.model, stop_tokens=ends, prefill_step_size=PREFILL_TOKENS
        )
        # It raised Metal's limit of wired memory; closing puts that back and does nothing else.
        self._generator.close()
        self._rows: dict[int, _Row] = {}  # by the generator's own number

    def add(self, key: int, task: ChatTask) -> None:
        """Take in a chat under a key of the caller's."""
        (number,) = self._generator.insert(
            [list(task.prompt)], [task.max_tokens], samplers=[task.draw]
        )
        self._rows[number] = _Row(key, TextStream(self._tokenizer, task.stops))

    def drop(self, keys: Sequence[int]) -> None:
        """Forget chats whose clients have gone."""
        numbers = [number for number, row in self._rows.items() if row.key in keys]
        if numbers:
            self._generator.remove(numbers)
            for number in numbers:
                del self._rows[number]

    def step(self) -> list[tuple[int, Piece]]:
        """Run a piece of the waiting prompts and one token of each chat; return what that gave."""
        if not self._rows:
            return []
        with dialled(self._model, self._factor):
            _, responses = self._generator.next()
        return [
            self._piece(response.uid, response.token, response.finish_reason)
            for response in responses
        ]

    def _piece(self, number: int, token: int, ended: Finish | None) -> tuple[int, Piece]:
        row = self._rows[number]
        row.num_tokens += 1
        text = row.text.add(token) if ended != "stop" else ""  # an end token is no text
        if row.text.stopped and ended is None:
            self._generator.remove([number])
        finish: Finish | None = "stop" if row.text.stopped else ended
        if finish is not None:
            text += row.text.finish()
            del self._rows[number]
        return row.key, Piece(text, row.num_tokens, finish)
