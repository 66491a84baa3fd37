"""The commands about the store as a whole: `memory export`, `import`, `check`, `backup`, `vacuum`.

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
from llmos.memory.folder import DATABASE_FILE
from llmos.memory.ingest import manifest
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


def check_store(config: Config, *, as_json: bool) -> int:
    """Look for damage; status 1 when there is some.

    Raises: SyscallError("storage") for a database that is too damaged to be opened.
    """
    with open_memory(config) as store:
        found = store.check()
        database = store.folder / DATABASE_FILE
    if as_json:
        print(json.dumps({"notes": found.notes, "problems": found.problems}))
    elif found.is_whole:
        say(f"{database}: {count(found.notes)} notes, all whole")
    else:
        for problem in found.problems:
            say(problem)
        say(
            f"{database} is damaged: restore a backup, or export what can be read and import it "
            "into a new store"
        )
    return exits.OK if found.is_whole else exits.FAILED


def back_up(config: Config, folder: Path) -> int:
    """Copy the store into a new folder."""
    with open_memory(config) as store:
        store.backup(folder)
        database = folder / DATABASE_FILE
    say(
        f"{database}, {size(database.stat().st_size)}; to use it, put it in place of "
        f"{store.folder / DATABASE_FILE} while nothing runs"
    )
    return exits.OK


def vacuum_store(config: Config) -> int:
    """Leave nothing of what was forgotten, and give its room back."""
    with open_memory(config) as store:
        before = store.stat().database_bytes
        store.record(manifest.drop_forgotten)
        store.vacuum()
        after = store.stat().database_bytes
    say(f"{size(before)} before, {size(after)} after")
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
