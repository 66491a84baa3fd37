"""The commands that bring notes out of the store and in: `memory export`, `import`.

Only `import` boots a kernel, for the embedding model, and opens that where a vector is missing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmos import exits
from llmos.booting import boot, open_memory
from llmos.commands_memory import say
from llmos.kernel.ingestion import embedding_from_thread
from llmos.pulling import bring_embedding
from llmos.tables import console, count, size

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel
    from llmos.memory.importing import Imported
    from llmos.memory.ingest.intake import Embed, Embedded
    from llmos.memory.portable import Records


def export_notes(
    config: Config,
    file: Path,
    namespaces: Sequence[str] | None,
    *,
    with_vectors: bool,
    as_json: bool,
) -> int:
    """Write notes to a file."""
    from llmos.memory.export import export

    with open_memory(config) as store:
        written = export(store, file, namespaces=namespaces, with_vectors=with_vectors)
    if as_json:
        print(json.dumps({"file": str(file), "notes": written, "bytes": file.stat().st_size}))
    else:
        say(f"{count(written)} notes in {file}, {size(file.stat().st_size)}")
    return exits.OK


def import_notes(
    config: Config,
    path: Path,
    *,
    namespace: str | None,
    origin: str | None,
    texts: Path | None,
    collection: str | None,
    keeps_vectors: bool,
    as_json: bool,
) -> int:
    """Bring notes in."""
    from llmos.memory.importing import open_records

    opened = open_records(path, origin=origin, texts=texts, collection=collection)
    done = asyncio.run(_import(config, opened, namespace, keeps_vectors))
    if as_json:
        print(json.dumps(done._asdict()))
    else:
        say(
            f"{count(done.notes)} notes stored, {count(done.duplicates)} were there; "
            f"{count(done.embedded)} texts embedded"
        )
    return exits.OK


# --- internals ------------------------------------------------------------------------------------


async def _import(
    config: Config, opened: Records, namespace: str | None, keeps_vectors: bool
) -> Imported:
    from llmos.memory.importing import bring_in

    async with boot(config) as kernel:
        store = await kernel.library.opened()
        return await asyncio.to_thread(
            bring_in,
            store,
            opened,
            embed=_embed_when_needed(config, kernel),
            namespace=namespace,
            keeps_vectors=keeps_vectors,
        )


def _embed_when_needed(config: Config, kernel: Kernel) -> Embed:
    """Embedding for a worker thread, whose first use brings and opens the model."""
    embed = embedding_from_thread(kernel.library)

    def bring_and_embed(texts: Sequence[str]) -> Embedded:
        bring_embedding(config, console(is_error=True))
        return embed(texts)

    return bring_and_embed
