"""Answers over a connection that may break: whole, or as server-sent events.

A client that goes away is noticed by waiting for its `http.disconnect` beside the work, without
polling; the work is then cancelled, and the request's processes are killed on the way out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llmos import openai_answers
from llmos.http_process import Ended, Piece, Request
from llmos.openai_answers import Answer
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Generated
from llmos.syscalls.values import JsonObject

T = TypeVar("T")


async def results(request: Request, kind: type[T]) -> list[T]:
    """The results of a request's calls, in their order. Raises: SyscallError."""
    found: dict[int, T] = {}
    async with request:
        async for event in request.events():
            assert isinstance(event, Ended)
            assert isinstance(event.result, kind)
            found[event.index] = event.result
    return [found[index] for index in range(len(found))]


class EventStream(Response):
    """A streamed answer as server-sent events.

    The status is sent with the first chunk, so that what fails before it has a status of its own;
    what fails later is an event with `error`, and no [DONE] follows.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, answer: Answer, *, tells_usage: bool) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        self._request = request
        self._answer = answer
        self._tells_usage = tells_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        is_started = False
        try:
            async with self._request as request:
                async for chunk in self._chunks(request):
                    if not is_started:
                        await send(self._start())
                        is_started = True
                    await _send_event(send, _json(chunk))
        except SyscallError as problem:
            if not is_started:
                raise
            await _send_event(send, _json(openai_answers.error_answer(problem)))
        else:
            await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, request: Request) -> AsyncIterator[JsonObject]:
        found: dict[int, Generated] = {}
        async for event in request.events():
            if isinstance(event, Piece):
                if (chunk := self._answer.piece(event.index, event.text)) is not None:
                    yield chunk
                continue
            assert isinstance(event.result, Generated)
            found[event.index] = event.result
            for chunk in self._answer.ending(event.index, event.result):
                yield chunk
        if self._tells_usage:
            yield self._answer.usage([found[index] for index in range(len(found))])

    def _start(self) -> Message:
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        return {"type": "http.response.start", "status": self.status_code, "headers": headers}


async def while_connected(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """The result of `work`; None, and the work cancelled, when the client goes away first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.wait({working, watching})
    return None if working.cancelled() else working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
