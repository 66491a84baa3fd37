"""Whose vectors the store holds, and the change to the configured model's.

While the store's vectors are another model's than the configured one, that older model embeds
queries and new notes, so reads and writes go on as before. A process of the lowest priority,
`reembed` in `ps`, meanwhile makes the new vectors (`memory/reembedding.py`), in passes that come
after everybody else's, and ends when they are in place. A model that is gone can embed nothing:
until the change is done search is by words alone, which the error says.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llmos.kernel.embedder import Embedder
from llmos.kernel.encoders import Encoders
from llmos.kernel.process import Process
from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.reembedding import progress, reembed
from llmos.memory.store import Store
from llmos.memory.vector_model import VectorModel, model_text, parse_model
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Spawned
from llmos.syscalls.trap import Trap

PROGRAM = "reembed"
_PROGRESS_S = 5.0

log = logging.getLogger(__name__)


class Ended(Exception):
    """The change was ended from outside; it goes on with the next start."""


class Change:
    """A change of model on its way: what its process runs, and how signals reach the thread."""

    def __init__(
        self, store: Store, embedder: Embedder, model: VectorModel, *, dimensions: int
    ) -> None:
        self.model = model
        self._store = store
        self._embedder = embedder
        self._dimensions = dimensions
        self._may_go = threading.Event()
        self._may_go.set()
        self._is_ended = False

    def prepare(self, process: Process) -> dict[str, Any]:
        """Pass STOP and CONT of the process on."""
        process.on_stop = [self._hold]
        return {}

    async def run(self, trap: Trap) -> int:
        """Make all vectors anew, writing now and then how far it is; how many were made."""
        loop = asyncio.get_running_loop()

        def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
            self._may_go.wait()
            if self._is_ended:
                raise Ended
            work = self._embedder.embed(texts, role="document", is_idle=True)
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        while True:
            making = asyncio.ensure_future(
                asyncio.to_thread(reembed, self._store, self.model.text, self._dimensions, embed)
            )
            try:
                return await self._watched(trap, making)
            except SyscallError as problem:
                if problem.code != "busy":
                    log.warning("the store keeps its old vectors until the next start: %s", problem)
                    raise
            finally:
                if not making.done():
                    self._is_ended = True
                    self._may_go.set()
                    await asyncio.wait((making,))
                    making.exception()  # `Ended`, mostly: the process is being ended
            await trap.call(calls.Sleep(seconds=_PROGRESS_S))  # another process is at it

    async def _watched(self, trap: Trap, making: asyncio.Future[int]) -> int:
        while not making.done():
            await asyncio.wait((making,), timeout=_PROGRESS_S)
            await trap.call(calls.Write(fd=1, data=await asyncio.to_thread(self._told)))
        return making.result()

    def _told(self) -> bytes:
        with self._store.reading() as reader:
            far = progress(reader.sql)
        return b"done\n" if far is None else f"{far[0]} of {far[1]} notes\n".encode()

    def _hold(self, is_held: bool) -> None:
        if is_held:
            self._may_go.clear()
        else:
            self._may_go.set()


class Reembedding:
    """`start` starts the process that a change runs in. Event-loop thread only."""

    def __init__(
        self,
        encoders: Encoders,
        setting: EmbeddingSetting | None,
        *,
        start: Callable[[Change], Spawned],
    ) -> None:
        self._encoders = encoders
        self._setting = setting
        self._start = start
        self._wanted: VectorModel | None = None
        self._asking = asyncio.Lock()
        self._is_begun = False

    async def embedder(self, store: Store) -> tuple[Embedder, str | None]:
        """The device whose vectors the store holds now, and its model's text there.

        Begins the change where the configured model is another.
        Raises: SyscallError saying why nothing can be embedded.
        """
        configured = await self._encoders.embedder()
        wanted = await self._identity()
        width = configured.model.dimensions
        text = await asyncio.to_thread(_text_of, store)
        if text is None and store.dimensions == width:
            # Of a time when nobody wrote it down: the model is taken to be the one that it was.
            await asyncio.to_thread(store.record, lambda sql: _adopt(sql, wanted.text))
            text = wanted.text
        current = parse_model(text)
        if current is not None and current.identity == wanted.identity:
            return configured, text
        if not self._is_begun:
            self._is_begun = True
            self._start(Change(store, configured, wanted, dimensions=width))
        try:
            if current is None:
                raise SyscallError("not_available", "it is not known which model that was")
            return await self._encoders.embedder_of(current), text
        except SyscallError as problem:
            raise SyscallError(
                "not_available",
                "the store's vectors are of another embedding model, which cannot be opened: "
                f"{problem}. They are being made anew, see `reembed` in ps; until that is done "
                "search by words (mode='lexical')",
                is_retryable=True,
            ) from problem

    async def _identity(self) -> VectorModel:
        async with self._asking:
            if self._wanted is None:
                assert self._setting is not None, "vectors come from a configured model"
                self._wanted = await asyncio.to_thread(self._setting.identity)
            return self._wanted


def _adopt(sql: sqlite3.Connection, text: str) -> None:
    sql.execute("UPDATE store SET embedding_model = ? WHERE embedding_model IS NULL", (text,))


def _text_of(store: Store) -> str | None:
    with store.reading() as reader:
        return model_text(reader.sql)
