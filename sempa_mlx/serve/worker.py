"""What runs on the inference thread, and nowhere else: tokenising, embedding, steps of chats."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.generate import batches_exactly
from sempa_mlx.model.head import max_positions
from sempa_mlx.model.lora import adapter_fingerprint, dialled
from sempa_mlx.model.prompts import ChatRenderer, tokenize_bare, tokenize_texts
from sempa_mlx.serve.chat_request import ChatRequest
from sempa_mlx.serve.chats import ChatBatch, ChatTask, Piece
from sempa_mlx.serve.embedding_request import Input
from sempa_mlx.serve.faults import bad_request
from sempa_mlx.serve.limits import Batching, Limits
from sempa_mlx.serve.sampling import draw_of

TOO_LONG = "context_length_exceeded"
BASE = 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that can be embedded, the tokens of each in its prompts, and those of the input."""

    texts: tuple[str, ...]
    costs: tuple[int, ...]
    num_tokens: int


class Worker:
    """One model with its adapter, used by one thread."""

    def __init__(self, encoder: Encoder, limits: Limits, batching: Batching) -> None:
        """Serve an encoder and the language model in it."""
        self.encoder = encoder
        self._loaded = encoder.loaded
        self._tokenizer = encoder.loaded.tokenizer
        self._limits = limits
        self._batching = batching
        self._renderer = ChatRenderer(self._loaded.tokenizer)
        self._batches: dict[float, ChatBatch] = {}
        self._max_tokens = encoder.settings.max_tokens
        self.context = int(min(limits.context_tokens, max_positions(self._loaded.model)))
        self.has_adapter = adapter_fingerprint(self._loaded.model) is not None
        self.chat_rows = 1

    def warm_up(self) -> None:
        """Run the model once, so that what cannot work fails before anybody asks.

        Raises:
            ModelError: its embeddings are not finite.
        """
        first, _ = self.encoder.encode_counted(["A first text."])
        if not np.isfinite(first).all():
            name = self._loaded.location.name
            raise ModelError(Problem("its embeddings hold NaN or infinity", name))
        with dialled(self._loaded.model, BASE):
            probe = tokenize_bare(["A first text to try batches of chats with."], self._tokenizer)
            if batches_exactly(self._loaded.model, probe[0]):
                self.chat_rows = self._batching.chats

    def read_texts(self, inputs: Sequence[Input]) -> Texts:
        """Turn the inputs of a request into texts.

        Token ids become the text that they stand for, which is then embedded like any other.

        Raises:
            RequestError: 400, an input is too long or has ids that the tokenizer does not know.
        """
        texts = tuple(self._text_of(index, each) for index, each in enumerate(inputs))
        bare = tokenize_bare(texts, self._tokenizer)
        costs = [0] * len(texts)
        for template in self.encoder.method.templates:
            rows = tokenize_texts(texts, template, self._tokenizer, sys.maxsize).rows
            for index, row in enumerate(rows):
                self._check_length(index, len(row))
                costs[index] += len(row)
        return Texts(texts, tuple(costs), sum(map(len, bare)))

    def _text_of(self, index: int, given: Input) -> str:
        if isinstance(given, str):
            longest = self._max_tokens * self._limits.characters_a_token
            if len(given) > longest:
                what = f"input {index} has {len(given)} characters, at most {longest} can fit"
                raise bad_request(what, "input", TOO_LONG)
            return given
        self._check_length(index, len(given))
        known = len(self._tokenizer)
        if any(not 0 <= token < known for token in given):
            what = f"input {index} has token ids beyond the {known} of this model's tokenizer"
            raise bad_request(f"{what}; send texts", "input")
        return str(self._tokenizer.decode(list(given)))

    def _check_length(self, index: int, length: int) -> None:
        if length > self._max_tokens:
            what = f"input {index} takes {length} tokens in its prompt, at most {self._max_tokens}"
            what += " can be embedded"
            raise bad_request(what, "input", TOO_LONG)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (texts, dim) float32, as `Encoder.encode` does."""
        return self.encoder.encode_counted(texts, batch_tokens=self._batching.tokens)[0]

    def read_chat(self, request: ChatRequest, *, adapted: bool) -> ChatTask:
        """Turn a request into a chat that can run.

        Raises:
            RequestError: 400, the conversation is too long or the chat template refuses it.
        """
        if len(request.messages) > self.context:  # each has a token at least, of its turn
            what = f"the conversation has {len(request.messages)} messages; the context is "
            raise bad_request(f"{what}{self.context} tokens", "messages", TOO_LONG)
        characters = sum(len(message.content) for message in request.messages)
        if characters > self.context * self._limits.characters_a_token:
            what = f"the conversation has {characters} characters; the context is {self.context}"
            raise bad_request(f"{what} tokens", "messages", TOO_LONG)
        try:
            prompt = self._renderer.prompt(request.messages)
        except ModelError as error:
            raise bad_request(str(error), "messages") from error
        room = self.context - len(prompt)
        if room < 1 or not prompt:
            what = f"the conversation takes {len(prompt)} tokens, the context is {self.context}"
            raise bad_request(what, "messages", TOO_LONG)
        wanted = request.max_tokens or self._limits.answer_tokens
        factor = self.encoder.settings.adapter_scale if adapted else BASE
        return ChatTask(factor, prompt, min(wanted, room), draw_of(request), request.stops)

    def step(
        self, new: Sequence[tuple[int, ChatTask]], gone: Sequence[int]
    ) -> list[tuple[int, Piece]]:
        """Take in chats, forget others, and run one step of all; keys are the caller's."""
        for batch in self._batches.values():
            batch.drop(gone)
        for key, task in new:
            if task.factor not in self._batches:
                self._batches[task.factor] = ChatBatch(self._loaded, task.factor)
            self._batches[task.factor].add(key, task)
        return [found for batch in self._batches.values() for found in batch.step()]

    def forget_chats(self) -> None:
        """Drop every chat, after a step that failed."""
        self._batches.clear()
