"""The queue before the one inference thread, and what runs next.

Requests are kept by the event loop alone; the thread gets one piece of work at a time and hands
back what it found. Turn by turn: new requests are tokenised, one batch of embeddings runs with
whatever requests are there by then, and all chats go on by one token. So batches form by
themselves under load, an idle server waits for nothing, and a long chat stops nobody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeVar

from sempa_mlx.serve.chat_request import ChatRequest
from sempa_mlx.serve.chats import ChatTask
from sempa_mlx.serve.embedding_request import Input
from sempa_mlx.serve.faults import RequestError, internal_fault, stopping
from sempa_mlx.serve.jobs import ChatJob, Embedded, EmbeddingJob, EmbeddingQueue
from sempa_mlx.serve.limits import Batching
from sempa_mlx.serve.worker import Texts, Worker

Result = TypeVar("Result")
Job = EmbeddingJob | ChatJob


class Engine:
    """Runs the requests of all connections on one thread."""

    def __init__(
        self,
        worker: Worker,
        thread: ThreadPoolExecutor,
        batching: Batching,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        """Use a worker on its thread alone; `on_bug` hears of errors that are no client's."""
        self._worker = worker
        self._thread = thread
        self._batching = batching
        self._on_bug = on_bug
        self._new: list[Job] = []
        self._embeddings = EmbeddingQueue()
        self._embedding: list[EmbeddingJob] = []
        self._waiting: list[ChatJob] = []
        self._running: dict[int, ChatJob] = {}
        self._keys = count()
        self._work = asyncio.Event()
        self.stopped = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        """Tell whether nothing more is taken."""
        return self.stopped.is_set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve inside the block."""
        turns = asyncio.create_task(self._take_turns())
        turns.add_done_callback(self._note_end)
        try:
            yield
        finally:
            self.stop()
            turns.cancel()
            await asyncio.wait([turns])

    def _note_end(self, turns: "asyncio.Task[None]") -> None:
        """Turn requests away, rather than let them wait, if a bug has ended the turns."""
        error = None if turns.cancelled() else turns.exception()
        if error is not None:
            self.stop()
            self._on_bug(error)

    def stop(self) -> None:
        """Answer everything that waits or runs with 503, and take nothing more."""
        self.stopped.set()
        chats = (*self._waiting, *self._running.values())
        for job in (*self._new, *self._embeddings.drain(), *self._embedding, *chats):
            job.fail(stopping())
        self._new.clear()
        self._waiting.clear()

    async def embed(self, inputs: tuple[Input, ...]) -> Embedded:
        """Embed the inputs of a request; a caller that is cancelled frees its place.

        Raises:
            RequestError: an input cannot be embedded, or the server stops.
        """
        job = EmbeddingJob(inputs, asyncio.get_running_loop().create_future())
        self._take_in(job)
        return await job.done

    def chat(self, request: ChatRequest, *, adapted: bool) -> ChatJob:
        """Begin a chat; hand it to `drop` when its answer is of no use any more."""
        read: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        job = ChatJob(next(self._keys), request, adapted, read)
        self._take_in(job)
        return job

    def drop(self, job: ChatJob) -> None:
        """End a chat before its time, or do nothing if it has ended."""
        job.is_over = True
        self._work.set()

    def _take_in(self, job: Job) -> None:
        if self.is_stopped:
            raise stopping()
        self._new.append(job)
        self._work.set()

    async def _take_turns(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._new or self._embeddings or self._waiting or self._running:
                await self._read_new()
                await self._embed_batch()
                await self._step_chats()

    async def _on_thread(self, work: Callable[[], Result]) -> Result | RequestError:
        """Run work on the inference thread; an error of its own becomes a 500."""
        call = asyncio.get_running_loop().run_in_executor(self._thread, _ended, work)
        await asyncio.wait([call])
        error = call.exception()
        if error is None:
            return call.result()
        if isinstance(error, RequestError):
            return error
        self._on_bug(error)
        return internal_fault()

    async def _read_new(self) -> None:
        jobs, self._new = [job for job in self._new if not job.is_over], []
        for job in jobs:
            found = await self._on_thread(lambda job=job: self._read(job))  # type: ignore[misc]
            if isinstance(found, RequestError):
                job.fail(found)
            elif job.is_over or self.is_stopped:
                job.fail(stopping())
            elif isinstance(job, EmbeddingJob) and isinstance(found, Texts):
                job.take_in(found)
                self._embeddings.add(job)
            elif isinstance(job, ChatJob) and isinstance(found, ChatTask):
                job.take_in(found)
                self._waiting.append(job)

    def _read(self, job: Job) -> Texts | ChatTask:
        if isinstance(job, EmbeddingJob):
            return self._worker.read_texts(job.inputs)
        return self._worker.read_chat(job.request, adapted=job.adapted)

    async def _embed_batch(self) -> None:
        batch = self._embeddings.take(self._batching.tokens, self._batching.requests)
        if not batch:
            return
        texts = [job.texts.texts[place] for job, place in batch if job.texts is not None]
        self._embedding = [job for job, _ in batch]
        found = await self._on_thread(lambda: self._worker.embed(texts))
        self._embedding = []
        for row, (job, place) in enumerate(batch):
            if isinstance(found, RequestError):
                job.fail(found)
            else:
                job.put(place, found[row])

    async def _step_chats(self) -> None:
        gone = [key for key, job in self._running.items() if job.is_over]
        for key in gone:
            del self._running[key]
        self._waiting = [job for job in self._waiting if not job.is_over]
        room = self._worker.chat_rows - len(self._running)
        new, self._waiting = self._waiting[:room], self._waiting[room:]
        self._running |= {job.key: job for job in new}
        if not (self._running or gone):
            return
        tasks = [(job.key, job.task) for job in new if job.task is not None]
        found = await self._on_thread(lambda: self._worker.step(tasks, gone))
        if isinstance(found, RequestError):
            for job in self._running.values():
                job.fail(found)
            self._running.clear()
            await self._on_thread(self._worker.forget_chats)
            return
        for key, piece in found:
            self._running[key].pieces.put_nowait(piece)
            if piece.finish is not None:
                del self._running[key]


def _ended(work: Callable[[], Result]) -> Result:
    """Do some work; a future cannot hold a StopIteration and would never be done."""
    try:
        return work()
    except StopIteration as error:
        raise RuntimeError("StopIteration") from error
