"""What waits for the inference thread, and which of it runs together."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sempa_mlx.serve.chat_request import ChatRequest
from sempa_mlx.serve.chats import ChatTask, Piece
from sempa_mlx.serve.embedding_request import Input
from sempa_mlx.serve.faults import RequestError
from sempa_mlx.serve.worker import Texts


class Embedded(NamedTuple):
    """The vectors of a request, (inputs, dim) float32, and how many tokens its inputs have."""

    vectors: np.ndarray
    num_tokens: int


@dataclass(eq=False, slots=True)
class EmbeddingJob:
    """An embedding request: texts before `begun` have been handed out, `missing` have no vector."""

    inputs: tuple[Input, ...]
    done: "asyncio.Future[Embedded]"
    texts: Texts | None = None
    vectors: list[np.ndarray | None] = field(default_factory=list)
    begun: int = 0
    missing: int = 0

    @property
    def is_over(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self.done.done()

    def fail(self, error: RequestError) -> None:
        """Answer with an error."""
        if not self.done.done():
            self.done.set_exception(error)

    def take_in(self, texts: Texts) -> None:
        """Note what its inputs are."""
        self.texts = texts
        self.missing = len(texts.texts)
        self.vectors = [None] * self.missing

    def put(self, place: int, vector: np.ndarray) -> None:
        """Take the vector of one text; the last one answers the request."""
        self.vectors[place] = vector
        self.missing -= 1
        if not self.missing and not self.done.done():
            assert self.texts is not None
            found = [vector for vector in self.vectors if vector is not None]
            self.done.set_result(Embedded(np.stack(found), self.texts.num_tokens))


@dataclass(eq=False, slots=True)
class ChatJob:
    """A chat: `read` holds its prompt's tokens once they are known, `pieces` what was generated."""

    key: int
    request: ChatRequest
    adapted: bool
    read: "asyncio.Future[int]"
    pieces: "asyncio.Queue[Piece | RequestError]" = field(default_factory=asyncio.Queue)
    task: ChatTask | None = None
    is_over: bool = False

    def fail(self, error: RequestError) -> None:
        """Answer with an error."""
        if not self.read.done():
            self.read.set_exception(error)
        self.pieces.put_nowait(error)
        self.is_over = True

    def take_in(self, task: ChatTask) -> None:
        """Note what its request is."""
        self.task = task
        if not self.read.done():
            self.read.set_result(len(task.prompt))


class EmbeddingQueue:
    """Embedding requests whose texts are known."""

    def __init__(self) -> None:
        """Begin empty."""
        self._jobs: deque[EmbeddingJob] = deque()

    def __len__(self) -> int:
        """Return how many requests have texts that wait."""
        return len(self._jobs)

    def add(self, job: EmbeddingJob) -> None:
        """Put a request at the end."""
        self._jobs.append(job)

    def take(self, tokens: int, requests: int | None = None) -> list[tuple[EmbeddingJob, int]]:
        """Take the texts of the next batch, as (request, place in it).

        Requests take turns, a text each, and the next batch goes on where this one ends, so that a
        short one never waits for a long one.

        Args:
            tokens: the budget; a text that is longer makes a batch of its own.
            requests: how many requests may share the batch; None: any number.
        """
        waiting = [job for job in self._jobs if not job.is_over]
        turns = deque(waiting[:requests])
        taken: list[tuple[EmbeddingJob, int]] = []
        while turns:
            job = turns[0]
            assert job.texts is not None
            tokens -= job.texts.costs[job.begun]
            if taken and tokens < 0:
                break
            turns.popleft()
            taken.append((job, job.begun))
            job.begun += 1
            if job.begun < len(job.texts.costs):
                turns.append(job)
        self._jobs = deque([*waiting[len(waiting[:requests]) :], *turns])
        return taken

    def drain(self) -> list[EmbeddingJob]:
        """Take every request out."""
        jobs, self._jobs = list(self._jobs), deque()
        return jobs
