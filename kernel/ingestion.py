"""Files into long-term memory as a service: what a process may read, into where it may write.

`memory/ingest/` does the work in a worker thread; this module adds paths by capability and the
embedding device, whose passes it shares with all agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import Event

from llmos.kernel.files import FileSystem
from llmos.kernel.library import Library
from llmos.kernel.process import Process
from llmos.memory.ingest.counting import WordCounter
from llmos.memory.ingest.ingest import CHUNK_TOKENS, Ingestion, Progress, Recipe
from llmos.memory.ingest.intake import Embed, Embedded
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Ingested


class Ingestions:
    def __init__(self, library: Library, files: FileSystem) -> None:
        self._library = library
        self._files = files
        self._running: dict[asyncio.Task[Ingested], Event] = {}

    async def ingest(
        self,
        process: Process,
        call: calls.Ingest,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Ingested:
        """Take files in; `on_progress` is called in the worker thread.

        When the caller is killed, the run ends before it embeds anything more.
        Raises: SyscallError("denied") for a path; what store and embedding raise.
        """
        paths = [self._files.readable_path(process, path) for path in call.paths]
        store = await self._library.opened()
        embedder, _ = await self._library.embedder()
        count = WordCounter(embedder.driver.count)
        stop = Event()
        embed = embedding_from_thread(self._library)

        def embed_unless_stopped(texts: Sequence[str]) -> Embedded:
            if stop.is_set():
                raise SyscallError("not_available", "the run was ended")
            return embed(texts)

        ingestion = Ingestion(
            store,
            call.namespace or process.namespace,
            embed=embed_unless_stopped,
            count=count,
            recipe=Recipe(
                chunk_tokens=_chunk_tokens(call, embedder.model.max_tokens - count.around),
                encoding=call.encoding,
                max_file_bytes=call.max_file_bytes,
            ),
            owner=process.client or None,
            on_progress=on_progress,
            is_cancelled=stop.is_set,
        )
        running = asyncio.create_task(
            asyncio.to_thread(ingestion.run, paths, forgets_gone=call.forget_gone)
        )
        self._running[running] = stop
        running.add_done_callback(self._ended)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _ended(self, running: asyncio.Task[Ingested]) -> None:
        del self._running[running]
        if not running.cancelled():
            running.exception()  # nobody may be left to hear it

    async def stop(self) -> None:
        """End all runs; what one of them embeds at the moment is waited for."""
        for stop in self._running.values():
            stop.set()
        if self._running:
            await asyncio.wait(self._running)


def _chunk_tokens(call: calls.Ingest, window: int) -> int:
    """A chunk's most tokens: within what the embedding model sees, which is blind to the rest."""
    if call.chunk_tokens is None:
        return min(CHUNK_TOKENS, window)
    if call.chunk_tokens > window:
        raise SyscallError(
            "invalid",
            f"chunk_tokens: {call.chunk_tokens} are more than the {window} tokens that the "
            "embedding model sees",
            field="chunk_tokens",
        )
    return call.chunk_tokens


def embedding_from_thread(library: Library) -> Embed:
    """Embedding by the store's own model, for a thread that is not the event loop's."""
    loop = asyncio.get_running_loop()

    async def embed(texts: Sequence[str]) -> Embedded:
        embedder, model = await library.embedder()
        return Embedded(await embedder.embed(texts, role="document"), model)

    return lambda texts: asyncio.run_coroutine_threadsafe(embed(texts), loop).result()
