"""Long-term memory as a service: embeds, then stores or searches, off the event loop.

`memory/store.py` is the store; this module adds embedding, namespaces by capability and the
thread that keeps the disk away from the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from llmos.kernel.embedder import Embedder
from llmos.kernel.encoders import Encoders
from llmos.kernel.process import Process
from llmos.kernel.reembedding import Reembedding
from llmos.kernel.settings import Settings
from llmos.memory.decay import DAY_S
from llmos.memory.dialogues import Said, said_after
from llmos.memory.notes import unfit
from llmos.memory.query import Query, Reranker
from llmos.memory.store import Store
from llmos.memory.vector_model import made_with
from llmos.syscalls import calls
from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.syscalls.results import Facts, Forgotten, Hits, MemoryInfo, Remembered

R = TypeVar("R")

log = logging.getLogger(__name__)

# How well each of some texts answers a query, from 0 to 1.
Rerank = Callable[[str, Sequence[str]], Awaitable[Sequence[float]]]


def open_store(settings: Settings) -> Store:
    """The long-term store of a kernel's home, also for who needs no kernel.

    Raises: SyscallError("not_available") without an embedding model; as `Store`.
    """
    embedding = settings.embedding
    if embedding is None:
        raise SyscallError("not_available", "no embedding model is configured")
    folder = settings.home / "memory"
    made = made_with(folder)
    if made is not None:  # perhaps with another model, until `reembedding.py` has changed that
        return Store(folder, dimensions=made.dimensions)
    return Store(folder, dimensions=embedding.width(), model=embedding.identity_text())


class Library:
    """`open_store` runs in a worker thread at the first use."""

    def __init__(
        self,
        encoders: Encoders,
        open_store: Callable[[], Store],
        *,
        reembedding: Reembedding,
        rerank: Rerank | None = None,
        private_days: float = math.inf,
    ) -> None:
        """`private_days` is how long processes' own notes are kept after the newest of them."""
        self.rerank = rerank
        self._private_days = private_days
        self._encoders = encoders
        self._reembedding = reembedding
        self._open_store = open_store
        self._store: Store | None = None
        self._opening: asyncio.Task[Store] | None = None

    async def remember(self, process: Process, call: calls.Remember) -> Remembered:
        """Store notes in a namespace, on behalf of the client that the process runs for."""
        return await self.remember_in(
            call.namespace or process.namespace,
            call.notes,
            owner=call.owner or process.client or None,
            merge_above=call.merge_above,
        )

    async def remember_in(
        self,
        namespace: str,
        notes: Sequence[calls.Note],
        *,
        owner: str | None = None,
        merge_above: float | None = None,
    ) -> Remembered:
        """Store notes; all or none."""
        for index, note in enumerate(notes):
            if problem := unfit(note.text):  # before it is embedded, which takes long
                field = f"notes.{index}.text"
                raise SyscallError("invalid", f"{field}: {problem}", field=field)
        store = await self.opened()

        async def write() -> Remembered:
            embedder, model = await self._reembedding.embedder(store)
            vectors = await embedder.embed([note.text for note in notes], role="document")
            return await asyncio.to_thread(
                store.remember,
                namespace,
                notes,
                vectors,
                owner=owner,
                merge_above=merge_above,
                model=model,
            )

        return await _again_if_busy(write)

    async def retrieve(self, process: Process, call: calls.Retrieve) -> Hits:
        """Search the namespaces that were named, or all that the process may read.

        Raises: SyscallError("invalid") naming the field; "not_available" without a reranker.
        """
        store = await self.opened()
        reranker = self._reranker() if call.rerank else None
        query = Query(
            text=call.query,
            k=call.k,
            mode=call.mode,
            namespaces=await self._named(process, store, call.namespaces),
            where=call.where,
            kinds=call.kinds,
            at=call.at,
            with_history=call.with_history,
            recency_s=call.recency_s,
            diversity=call.diversity,
            reranker=reranker,
            neighbours=call.neighbours,
            with_parent=call.with_parent,
            hops=call.hops,
        )

        async def search() -> Hits:
            if query.mode == "lexical":
                return await asyncio.to_thread(store.retrieve, query)
            embedder, model = await self._reembedding.embedder(store)
            (vector,) = await embedder.embed([query.text], role="query")
            return await asyncio.to_thread(
                store.retrieve, replace(query, vector=vector, model=model)
            )

        return await _again_if_busy(search)

    async def embedder(self) -> tuple[Embedder, str | None]:
        """The device whose vectors the store holds now, and its model's text there.

        Raises: SyscallError.
        """
        return await self._reembedding.embedder(await self.opened())

    async def related(self, process: Process, call: calls.Related) -> Facts:
        """Facts about an entity, from the namespaces that were named or may be read."""
        store = await self.opened()
        namespaces = await self._named(process, store, call.namespaces)

        def walk() -> Facts:
            return store.related(
                call.entity,
                hops=call.hops,
                namespaces=namespaces,
                at=call.at,
                with_history=call.with_history,
                limit=call.limit,
            )

        return await asyncio.to_thread(walk)

    async def forget(self, process: Process, call: calls.Forget) -> Forgotten:
        """Delete from one namespace; what is kept for an owner, from all that may be written."""
        if not (call.ids or call.source is not None or call.where or call.owner or call.everything):
            raise SyscallError(
                "invalid",
                "ids, source, where, owner, everything: give one, so that not all is forgotten",
                field="ids",
            )
        store = await self.opened()
        if call.namespace is not None:
            namespaces = [call.namespace]
        elif call.owner is not None:
            namespaces = await self._allowed(process, store, "write")
        else:
            namespaces = [process.namespace]

        def delete() -> Forgotten:
            return store.forget(
                namespaces,
                ids=call.ids,
                source=call.source,
                where=call.where,
                owner=call.owner,
                everything=call.everything,
            )

        forgotten = await asyncio.to_thread(delete)
        if forgotten.count:
            await self._encoders.forget_vectors()
        return forgotten

    async def said_after(self, mark: int, *, limit: int) -> list[Said]:
        """Dialogue that consolidation has not read yet; `dialogues.py` says what that is."""
        store = await self.opened()

        def read() -> list[Said]:
            with store.reading() as reader:
                return said_after(reader.sql, mark, now=reader.now, limit=limit)

        return await asyncio.to_thread(read)

    async def decay(self) -> Forgotten:
        """Forget what has faded, in all namespaces."""
        return await asyncio.to_thread((await self.opened()).decay)

    async def stat(self, process: Process) -> MemoryInfo:
        """Counts and sizes of what the process may read."""
        store = await self.opened()
        namespaces = await self._allowed(process, store, "read")
        return await asyncio.to_thread(store.stat, namespaces)

    def index_bytes(self) -> int:
        """Memory of the vector index, for the ledger."""
        return 0 if self._store is None else self._store.index_bytes()

    async def stop(self) -> None:
        """Flush and close the store."""
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def _reranker(self) -> Reranker:
        """The reranking model, for the thread that searches. Raises: SyscallError."""
        rerank = self.rerank
        if rerank is None:
            raise SyscallError(
                "not_available",
                "rerank: no cross-encoder is configured; name one as [reranker] source in "
                "llmos.toml, or leave rerank out",
                field="rerank",
            )
        loop = asyncio.get_running_loop()

        async def scored(query: str, texts: Sequence[str]) -> Sequence[float]:
            return await rerank(query, texts)

        def wait_for(query: str, texts: Sequence[str]) -> Sequence[float]:
            return asyncio.run_coroutine_threadsafe(scored(query, texts), loop).result()

        return wait_for

    async def _named(
        self, process: Process, store: Store, namespaces: Sequence[str] | None
    ) -> Sequence[str]:
        """The namespaces that a call names, which the gate has checked, or all that are allowed."""
        if namespaces is not None:
            return namespaces
        return await self._allowed(process, store, "read")

    async def _allowed(
        self, process: Process, store: Store, kind: Literal["read", "write"]
    ) -> list[str]:
        names = await asyncio.to_thread(store.namespaces)
        own = process.namespace
        return [name for name in names if name == own or process.capabilities.allows(kind, name)]

    async def opened(self) -> Store:
        """The store, opened at its first use. Raises: SyscallError("storage")."""
        while self._store is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            # A task of its own: whoever asks first may be killed, and the store is open all the
            # same, and locked.
            try:
                await asyncio.shield(self._opening)
            except ConfigError as problem:  # another kernel has it, or it is of a newer version
                raise SyscallError("storage", str(problem), field=problem.field) from problem
        return self._store

    async def _open(self) -> Store:
        try:
            self._store = await asyncio.to_thread(self._opened_store)
            return self._store
        finally:
            self._opening = None

    def _opened_store(self) -> Store:
        store = self._open_store()
        try:
            store.forget_left_behind(self._private_days * DAY_S)
        except SyscallError as problem:  # a full disk, say, on which all can be read
            log.warning("what ended processes left is kept for now: %s", problem)
        return store


async def _again_if_busy(work: Callable[[], Awaitable[R]]) -> R:
    """Do it a second time when the store's embedding model was changed while it was done."""
    try:
        return await work()
    except SyscallError as problem:
        if problem.code != "busy":
            raise
    return await work()
