"""HTTP requests as processes of the kernel.

Every call of a request runs in a process of its own: `ps` shows it with the client that asked, it
holds only the capability for the model that was named, and it is killed when the request is given
up. The program is the same for all; its names (`http.chat`, ...) tell `ps` what was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llmos.syscalls.calls import Call, Generate
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Delta, Exited, Generated
from llmos.syscalls.rights import Capabilities
from llmos.syscalls.values import JsonObject, Value
from llmos.syscalls.wire import decode_result, encode

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.kernel.kernel import Kernel

PROGRAMS = ("http.chat", "http.completion", "http.embedding", "http.classify", "http.tag")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that one of a request's calls has generated."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of one of a request's calls."""

    index: int
    result: Value


class RequestPrograms:
    """Starts requests' processes and gives each the call that it was started for."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._requests: dict[str, Request] = {}
        for name in PROGRAMS:
            kernel.programs.add(name, self._main)

    def request(
        self,
        program: str,
        id: str,
        calls: Sequence[Call[Any]],
        *,
        client: str,
        user: str,
        model: str,
        nice: int = 0,
        is_streamed: bool = False,
    ) -> Request:
        """A request, to be entered as a context: its processes live no longer than that.

        `client` is the address that `ps` shows, `user` on whose behalf the processes run.
        """
        return Request(
            self._kernel,
            self._requests,
            program=program,
            id=id,
            calls=calls,
            client=client,
            user=user,
            model=model,
            nice=nice,
            is_streamed=is_streamed,
        )

    async def _main(self, os: OS, client: str, id: str, index: int) -> JsonObject:
        """Issue call `index` of request `id`, which `client` made."""
        request = self._requests[id]
        call = request.calls[index]
        if not request.is_streamed or not isinstance(call, Generate):
            return encode(await os.call(call))
        result: Generated | None = None
        async for item in os.stream_call(call):
            if isinstance(item, Delta):
                request.tell(Piece(index, item.text))
            else:
                result = item
        assert result is not None, "a stream ends with its result"
        return encode(result)


class Request:
    """The calls of one HTTP request, one process each, while the context is entered.

    Leaving it kills what still runs: within one iteration of the scheduler nothing is left.
    """

    def __init__(
        self,
        kernel: Kernel,
        registry: dict[str, Request],
        *,
        program: str,
        id: str,
        calls: Sequence[Call[Any]],
        client: str,
        user: str,
        model: str,
        nice: int,
        is_streamed: bool,
    ) -> None:
        self.id = id
        self.calls = calls
        self.is_streamed = is_streamed
        self.pids: list[int] = []
        self._os = kernel.os
        self._registry = registry
        self._program = program
        self._client = client
        self._user = user
        self._model = model
        self._nice = nice
        # Not bounded: an answer is no longer than the model's window, and a generation that a slow
        # client held up would hold its KV all the while.
        self._events: asyncio.Queue[Piece | Exited] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._registry[self.id] = self
        try:
            for index in range(len(self.calls)):
                await self._start(index)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def events(self) -> AsyncIterator[Piece | Ended]:
        """Pieces of text as they come, and each call's result.

        Raises: SyscallError, the error of the first call that failed.
        """
        running = len(self.calls)
        while running:
            event = await self._events.get()
            if isinstance(event, Piece):
                yield event
                continue
            running -= 1
            index = self.pids.index(event.pid)
            yield Ended(index, decode_result(type(self.calls[index]), _value(event)))

    def tell(self, event: Piece | Exited) -> None:
        """Pass on what happened to whoever reads `events`."""
        self._events.put_nowait(event)

    async def _start(self, index: int) -> None:
        pid = await self._os.spawn(
            self._program,
            self._client,
            self.id,
            index,
            client=self._user,
            nice=self._nice,
            capabilities=Capabilities(models=frozenset({self._model})),
        )
        self.pids.append(pid)
        self._waiting[pid] = asyncio.create_task(self._reap(pid), name=f"reap {pid}")

    async def _reap(self, pid: int) -> None:
        exited = await self._os.wait(pid)
        del self._waiting[pid]
        self.tell(exited)

    async def _stop(self) -> None:
        try:
            for pid in list(self._waiting):
                await self._kill(pid)
            if self._waiting:
                await asyncio.wait(self._waiting.values())
        finally:
            del self._registry[self.id]

    async def _kill(self, pid: int) -> None:
        try:
            await self._os.signal(pid, "KILL")
        except SyscallError as problem:
            if problem.code != "not_found":  # it ended by itself meanwhile
                raise


def _value(exited: Exited) -> JsonObject:
    """What a process returned. Raises: SyscallError, also when somebody killed it."""
    return exited.unwrap()
