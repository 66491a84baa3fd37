"""Files into long-term memory as a service: what a process may read, into where it may write.

`memory/ingest/` does the work in a worker thread; this module adds paths by capability and the
embedding device, whose passes it shares with all agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import Event

from llmos.kernel.devices import Devices
from llmos.kernel.embedder import Embedder
from llmos.kernel.files import FileSystem
from llmos.kernel.library import Library
from llmos.kernel.process import Process
from llmos.memory.ingest.counting import WordCounter
from llmos.memory.ingest.ingest import CHUNK_TOKENS, Ingestion, Progress, Recipe
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Ingested

Vectors = Sequence[Sequence[float]]


class Ingestions:
    def __init__(self, library: Library, devices: Devices, files: FileSystem) -> None:
        self._library = library
        self._devices = devices
        self._files = files

    async def ingest(
        self,
        process: Process,
        call: calls.Ingest,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Ingested:
        """Take files in; `on_progress` is called in the worker thread.

        A caller that is killed leaves no thread behind: the run stops at the next file.
        Raises: SyscallError("denied") for a path; what store and embedding raise.
        """
        paths = [self._files.readable_path(process, path) for path in call.paths]
        store = await self._library.opened()
        embedder = await self._devices.embedder()
        count = WordCounter(embedder.driver.count)
        stop = Event()
        ingestion = Ingestion(
            store,
            call.namespace or process.namespace,
            embed=_from_thread(embedder),
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
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait((running,))
            raise


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


def _from_thread(embedder: Embedder) -> Callable[[Sequence[str]], Vectors]:
    """Embedding, for a thread that is not the event loop's."""
    loop = asyncio.get_running_loop()

    def embed(texts: Sequence[str]) -> Vectors:
        work = embedder.embed(texts, role="document")
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    return embed
