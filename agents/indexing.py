"""Bring a folder of files into memory, or up to date, in a namespace of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from llmos.agents.handle import OS
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

CHUNK_TOKENS = 120  # half a screen: what a small model can choose a sentence from


def namespace_of(folder: str, *, pid: int | None = None) -> str:
    """The memory namespace that a folder is indexed in when none is given.

    A relative folder is in the home of the process `pid`, so another process's is another.
    """
    named = folder if PurePosixPath(folder).is_absolute() else f"{pid}:{folder}"
    return f"files-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


async def indexer(
    os: OS,
    folder: str,
    namespace: str | None = None,
    *,
    paths: Sequence[str] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> JsonObject:
    """Index a folder, or only its files in `paths`.

    Returns `{"namespace", "files", "unchanged", "notes", "skipped"}`: `files` are those that memory
    now knows, `skipped` those that it could not take in, with the reason.
    """
    space = namespace or namespace_of(folder, pid=os.pid)
    done = await os.ingest(paths or folder, namespace=space, chunk_tokens=chunk_tokens)
    return {
        "namespace": space,
        "files": done.new + done.changed + done.unchanged,
        "unchanged": done.unchanged,
        "notes": done.notes,
        "skipped": [f"{one.path}: {one.message}" for one in done.problems],
    }


def require_indexed(indexed: JsonObject) -> None:
    """Raises: SyscallError("not_found") when a folder had nothing to index."""
    if indexed["files"] == 0:
        raise SyscallError(
            "not_found",
            "there is no text file to index; skipped: "
            f"{', '.join(indexed['skipped'][:5]) or 'none'}",
            what="text file",
            name=indexed["namespace"],
        )
