"""Reading what a client sends, and noticing when it leaves."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, NoReturn, TypeVar

from starlette.requests import ClientDisconnect, Request

from sempa_mlx.serve.faults import ClientGoneError, RequestError, bad_request
from sempa_mlx.serve.limits import MIB, Limits

Result = TypeVar("Result")


async def read_json(request: Request, limits: Limits) -> Any:  # noqa: ANN401 - any JSON value
    """Read a body as strict JSON.

    Raises:
        RequestError: 413 as soon as it is too large, whatever its length says; 408 if it takes too
            long; 400 if it is not JSON.
        ClientGoneError: the client hung up.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read(request, limits.body_bytes)
    except TimeoutError:
        what = f"the body was not there after {limits.body_seconds:g} seconds"
        headers = {"connection": "close"}
        raise RequestError(408, what, code="timeout", headers=headers) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # its text may quote the body
        raise bad_request("the body is not valid JSON in UTF-8") from None


async def _read(request: Request, most: int) -> bytes:
    too_large = RequestError(413, f"the body is larger than {most / MIB:g} MiB", code="too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:18]) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and infinity are not JSON")


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Wait for work, whose request has been read; end it if the client hangs up.

    Raises:
        ClientGoneError: it has.
    """
    return await unless(_disconnected(request), work, ClientGoneError())


async def unless(end: Awaitable[object], work: Awaitable[Result], error: Exception) -> Result:
    """Wait for work; give it up with an error if something else happens first."""
    task, ended = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise error
        return task.result()
    finally:
        task.cancel()
        ended.cancel()
        await asyncio.gather(task, ended, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
