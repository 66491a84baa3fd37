"""A kernel for code that is not asynchronous.

The kernel runs as always, in an event loop on a thread of its own; the methods here hand it a
coroutine and wait. Any thread may call them, and several at once: their generations share a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from llmos.agents.handle import OS
from llmos.booting import boot as boot_async
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel as AsyncKernel

P = ParamSpec("P")
R = TypeVar("R")
# Work that was never begun says nothing when it is cancelled.
_CLEAN_UP_S = 5.0


@contextmanager
def boot(config: Config | None = None, **overrides: Any) -> Generator[Kernel, None, None]:
    """A running kernel; arguments and errors are those of `llmos.boot`. Leaving it shuts down."""
    booted: Future[Kernel] = Future()
    with ThreadPoolExecutor(1, thread_name_prefix="llmos") as executor:
        life = executor.submit(asyncio.run, _live(booted, config, overrides))
        either: list[Future[Any]] = [booted, life]
        wait(either, return_when=FIRST_COMPLETED)
        if life.done():
            life.result()  # raises what kept it from booting
        kernel = booted.result()
        try:
            yield kernel
        finally:
            kernel.stop()
            life.result()


async def _live(booted: Future[Kernel], config: Config | None, overrides: dict[str, Any]) -> None:
    async with boot_async(config, **overrides) as kernel:
        facade = Kernel(kernel, asyncio.get_running_loop())
        booted.set_result(facade)
        await facade.stopped.wait()


def _blocking(
    method: Callable[Concatenate[OS, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Kernel, P], R]:
    """A method of the handle, issued by init, that waits for its result."""

    @wraps(method)
    def call(self: Kernel, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.wait_for(method(self.kernel.os, *args, **kwargs))

    return call


class Kernel:
    """A kernel in another thread; `kernel` is the asynchronous one, for use with `wait_for`."""

    def __init__(self, kernel: AsyncKernel, loop: asyncio.AbstractEventLoop) -> None:
        self.kernel = kernel
        self.stopped = asyncio.Event()
        self._loop = loop

    call = _blocking(OS.call)
    generate = _blocking(OS.generate)
    embed = _blocking(OS.embed)
    classify = _blocking(OS.classify)
    tag = _blocking(OS.tag)
    evaluate = _blocking(OS.evaluate)
    search = _blocking(OS.search)
    model_list = _blocking(OS.model_list)
    model_lineage = _blocking(OS.model_lineage)
    model_promote = _blocking(OS.model_promote)
    model_rollback = _blocking(OS.model_rollback)
    model_delete = _blocking(OS.model_delete)
    model_export = _blocking(OS.model_export)
    remember = _blocking(OS.remember)
    retrieve = _blocking(OS.retrieve)
    related = _blocking(OS.related)
    forget = _blocking(OS.forget)
    examples = _blocking(OS.examples)
    ingest = _blocking(OS.ingest)
    tool_call = _blocking(OS.tool_call)
    spawn = _blocking(OS.spawn)
    wait = _blocking(OS.wait)
    ps = _blocking(OS.ps)
    stat = _blocking(OS.stat)

    def run(self, program: str | ProgramFunction, *args: JsonValue, **kwargs: JsonValue) -> Any:
        """Run a program to its end and return its value; an interrupt kills it.

        Raises: SyscallError when it failed.
        """
        return self.wait_for(self._run(program, args, kwargs))

    def wait_for(self, work: Coroutine[Any, Any, R]) -> R:
        """Run any coroutine in the kernel's event loop and wait for its result.

        An interrupt of this thread ends the work, and waits until it has cleaned up.
        """
        done: Future[R] = Future()
        tasks: list[asyncio.Task[None]] = []

        async def watched() -> None:
            try:
                done.set_result(await work)
            except BaseException as problem:  # noqa: BLE001 - passed on to the waiting thread
                done.set_exception(problem)

        def begin() -> None:
            tasks.append(self._loop.create_task(watched()))

        def end() -> None:
            for task in tasks:
                task.cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            return done.result()
        finally:
            if not done.done():  # an interrupt, which may come as soon as the work has begun
                self._loop.call_soon_threadsafe(end)
                wait((done,), _CLEAN_UP_S)

    def iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        """Go through what the kernel yields, such as `kernel.kernel.os.stream(...)`."""
        ended = object()
        try:
            while (item := self.wait_for(_next(items, ended))) is not ended:
                yield item  # pyright: ignore[reportReturnType]
        finally:
            if close := getattr(items, "aclose", None):
                self.wait_for(close())

    def stop(self) -> None:
        """Begin to shut down; `boot` does so by itself."""
        self._loop.call_soon_threadsafe(self.stopped.set)

    async def _run(
        self, program: str | ProgramFunction, args: tuple[JsonValue, ...], kwargs: dict[str, Any]
    ) -> JsonValue:
        os = self.kernel.os
        pid = await os.spawn(program, *args, **kwargs)
        try:
            return await os.result(pid)
        except asyncio.CancelledError:
            await os.signal(pid, "KILL")
            await os.wait(pid)
            raise


async def _next(items: AsyncIterator[R], ended: object) -> R | object:
    return await anext(items, ended)
