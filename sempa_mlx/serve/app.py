"""The routes: OpenAI's embeddings, models and chat completions, and a health check."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sempa_mlx.serve.access import AccessLog, bug_report, note
from sempa_mlx.serve.admission import Admission
from sempa_mlx.serve.body import read_json, unless, unless_gone
from sempa_mlx.serve.chat_request import ChatRequest, parse_chat_request
from sempa_mlx.serve.chats import Piece
from sempa_mlx.serve.embedding_request import parse_embedding_request
from sempa_mlx.serve.engine import Engine
from sempa_mlx.serve.faults import ClientGoneError, RequestError, internal_fault, stopping
from sempa_mlx.serve.guard import Guard
from sempa_mlx.serve.jobs import ChatJob
from sempa_mlx.serve.limits import Limits
from sempa_mlx.serve.replies import (
    DONE,
    ChatReply,
    embeddings_document,
    error_reply,
    event,
    shortened,
)
from sempa_mlx.serve.served import Served

CLIENT_GONE = 499  # nginx's; nobody is left to read it
Result = TypeVar("Result")


class Api:
    """The answers to requests that the guard let through."""

    def __init__(self, engine: Engine, served: Served, limits: Limits) -> None:
        """Answer by an engine."""
        self._engine = engine
        self._served = served
        self._limits = limits
        self._admission = Admission(limits.requests, limits.retry_after)

    async def health(self, _request: Request) -> Response:
        """Say that the server answers, and how many requests it has."""
        if self._engine.is_stopped:
            raise stopping()
        return JSONResponse({"status": "ok", "requests": self._admission.inside})

    async def models(self, request: Request) -> Response:
        """List the models, or describe one."""
        return JSONResponse(self._served.describe(request.path_params.get("model")))

    async def embeddings(self, request: Request) -> Response:
        """Embed texts."""
        with self._admission.place():
            asked = parse_embedding_request(
                await self._body(request),
                max_inputs=self._limits.inputs,
                dim=self._served.dim,
            )
            self._served.check_embedding(asked.model)
            work = self._in_time(self._engine.embed(asked.inputs))
            vectors, num_tokens = await unless_gone(request, work)
            note(request, f"inputs {len(asked.inputs)}  tokens {num_tokens}")
            vectors = shortened(vectors, asked.dimensions, normalize=self._served.normalize)
            return JSONResponse(
                embeddings_document(
                    vectors,
                    as_base64=asked.as_base64,
                    model=self._served.embedding_id,
                    num_tokens=num_tokens,
                )
            )

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, at once or piece by piece."""
        with ExitStack() as held:
            held.enter_context(self._admission.place())
            asked = parse_chat_request(await self._body(request), max_stops=self._limits.stops)
            job = self._engine.chat(asked, adapted=self._served.is_adapted(asked.model))
            held.callback(self._engine.drop, job)
            prompt_tokens = await unless_gone(request, self._in_time(job.read))
            reply = ChatReply(asked.model, prompt_tokens)
            note(request, f"tokens {prompt_tokens}")
            if asked.stream:
                events = self._events(request, job, reply, asked)
                return EventStream(events, held.pop_all().close)
            text, last = await unless_gone(request, self._in_time(_whole(job)))
            note(request, f"tokens {prompt_tokens}+{last.num_tokens}")
            return JSONResponse(reply.whole(text, last.finish, last.num_tokens))

    async def _events(
        self, request: Request, job: ChatJob, reply: ChatReply, asked: ChatRequest
    ) -> AsyncIterator[str]:
        """Yield the events of a stream; an error is the last one if it comes to that."""
        yield reply.opening()
        end = asyncio.get_running_loop().time() + self._limits.request_seconds
        finish, num_tokens = None, 0
        while finish is None:
            try:
                async with asyncio.timeout_at(end):
                    piece = await job.pieces.get()
            except TimeoutError:
                piece = self._too_late()
            if isinstance(piece, RequestError):
                yield event(piece.document())
                return
            if piece.text:
                yield reply.piece(piece.text, None)
            finish, num_tokens = piece.finish, piece.num_tokens
            note(request, f"tokens {job.read.result()}+{num_tokens}")
        yield reply.piece("", finish)
        if asked.include_usage:
            yield reply.usage(num_tokens)
        yield DONE

    async def _body(self, request: Request) -> object:
        """Read a body as JSON; one that still comes when the server stops is not waited for."""
        reading = read_json(request, self._limits)
        return await unless(self._engine.stopped.wait(), reading, stopping())

    async def _in_time(self, work: Awaitable[Result]) -> Result:
        try:
            return await asyncio.wait_for(work, self._limits.request_seconds)
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> RequestError:
        what = f"not done within {self._limits.request_seconds:g} seconds"
        return RequestError(504, what, kind="server_error", code="timeout")


async def _whole(job: ChatJob) -> tuple[str, Piece]:
    """Wait for all of an answer; return it, and its last piece."""
    text = ""
    while True:
        piece = await job.pieces.get()
        if isinstance(piece, RequestError):
            raise piece
        text += piece.text
        if piece.finish is not None:
            return text, piece


class EventStream(StreamingResponse):
    """Server-sent events; whatever becomes of the client, `on_end` is called."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        """Send these events."""
        super().__init__(events, media_type="text/event-stream")
        self.headers["cache-control"] = "no-store"
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they or the client end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def make_app(
    engine: Engine,
    served: Served,
    limits: Limits,
    *,
    hosts: tuple[str, ...] = (),
    api_key: str | None = None,
    log: Callable[[str], None],
) -> Starlette:
    """Return the application.

    Args:
        engine: runs while the application does.
        served: the models.
        limits: of requests.
        hosts: names that may stand in `Host`, beside those of loopback.
        api_key: what clients have to show; None: nothing.
        log: takes lines of the log.
    """
    api = Api(engine, served, limits)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with engine.running():
            yield

    async def bug(_request: Request, error: Exception) -> Response:
        log(bug_report(error))
        return error_reply(internal_fault())

    app = Starlette(
        routes=[
            Route("/health", api.health, methods=["GET"]),
            Route("/v1/models", api.models, methods=["GET"]),
            Route("/v1/models/{model:path}", api.models, methods=["GET"]),
            Route("/v1/embeddings", api.embeddings, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        middleware=[
            Middleware(AccessLog, log=log),
            Middleware(Guard, hosts=hosts, api_key=api_key),
        ],
        exception_handlers={
            RequestError: _refused,
            ClientGoneError: _left_alone,
            HTTPException: _not_routed,
            Exception: bug,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would repeat what the client named as host
    return app


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_reply(error)


async def _left_alone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _not_routed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "no such path" if error.status_code == 404 else error.detail.lower()
    return error_reply(RequestError(error.status_code, what, headers=error.headers))
