"""Long-term memory as a service: embeds, then stores or searches, off the event loop.

`memory/store.py` is the store; this module adds embedding, namespaces by capability and the
thread that keeps the disk away from the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from llmos.kernel.devices import Devices
from llmos.kernel.process import Process
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls import calls
from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.syscalls.results import Facts, Forgotten, Hits, MemoryInfo, Remembered


class Library:
    """`open_store` runs in a worker thread at the first use."""

    def __init__(self, devices: Devices, open_store: Callable[[], Store]) -> None:
        self._devices = devices
        self._open_store = open_store
        self._store: Store | None = None
        self._opening: asyncio.Task[Store] | None = None

    async def remember(self, process: Process, call: calls.Remember) -> Remembered:
        """Store notes in a namespace."""
        return await self.remember_in(call.namespace or process.namespace, call.notes)

    async def remember_in(self, namespace: str, notes: Sequence[calls.Note]) -> Remembered:
        """Store notes; all or none."""
        for index, note in enumerate(notes):
            if not note.text.strip():
                raise SyscallError(
                    "invalid", f"notes.{index}.text: it is blank", field=f"notes.{index}.text"
                )
        store = await self._opened()
        embedder = await self._devices.embedder()
        vectors = await embedder.embed([note.text for note in notes])
        return await asyncio.to_thread(store.remember, namespace, notes, vectors)

    async def retrieve(self, process: Process, call: calls.Retrieve) -> Hits:
        """Search the namespaces that were named, or all that the process may read."""
        store = await self._opened()
        vector = None
        if call.mode != "lexical":
            embedder = await self._devices.embedder()
            (vector,) = await embedder.embed([call.query])
        namespaces = call.namespaces
        if namespaces is None:
            namespaces = await self._readable(process, store)

        def search() -> Hits:
            return store.retrieve(
                Query(
                    text=call.query,
                    vector=vector,
                    k=call.k,
                    mode=call.mode,
                    namespaces=namespaces,
                    where=call.where,
                )
            )

        return await asyncio.to_thread(search)

    async def related(self, process: Process, call: calls.Related) -> Facts:
        """Facts about an entity, from the namespaces that were named or may be read."""
        store = await self._opened()
        namespaces = call.namespaces
        if namespaces is None:
            namespaces = await self._readable(process, store)

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
        """Delete from one namespace."""
        if not call.ids and call.source is None and not call.where:
            raise SyscallError(
                "invalid", "ids, source, where: give one, so that not all is forgotten", field="ids"
            )
        store = await self._opened()
        namespace = call.namespace or process.namespace

        def delete() -> Forgotten:
            return store.forget(namespace, ids=call.ids, source=call.source, where=call.where)

        return await asyncio.to_thread(delete)

    async def stat(self, process: Process) -> MemoryInfo:
        """Counts and sizes of what the process may read."""
        store = await self._opened()
        namespaces = await self._readable(process, store)
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

    async def _readable(self, process: Process, store: Store) -> list[str]:
        info = await asyncio.to_thread(store.stat)
        own = process.namespace
        return [
            one.namespace
            for one in info.namespaces
            if one.namespace == own or process.capabilities.allows("read", one.namespace)
        ]

    async def _opened(self) -> Store:
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
            self._store = await asyncio.to_thread(self._open_store)
            return self._store
        finally:
            self._opening = None
