"""Index the files of a folder in long-term memory, in chunks that say where they come from.

Idempotent: a file whose content is in memory already is left alone, one that changed replaces what
was there. One file is stored in one call, so that memory never holds half of it. What is known of a
file that is gone stays: `os.forget(source=..., namespace=...)` removes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from llmos.agents.handle import OS
from llmos.agents.text import chunked, read_lossy
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import FileInfo
from llmos.syscalls.values import JsonObject

CHUNK_TOKENS = 120
TEXT_SUFFIXES = frozenset(
    {
        *(".c", ".cfg", ".conf", ".cpp", ".css", ".go", ".h", ".html", ".ini", ".java", ".js"),
        *(".log", ".md", ".py", ".rs", ".rst", ".sh", ".sql", ".tex", ".toml", ".ts", ".txt"),
        *(".yaml", ".yml"),
    }
)
MAX_FILE_BYTES = 1024 * 1024


def namespace_of(folder: str, *, pid: int | None = None) -> str:
    """The memory namespace that a folder is indexed in when none is given.

    A relative folder is in the home of the process `pid`, so another process's is another.
    """
    named = folder if PurePosixPath(folder).is_absolute() else f"{pid}:{folder}"
    return f"folder-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


async def text_files(os: OS, folder: str) -> tuple[list[FileInfo], list[str]]:
    """The files of a folder that hold text by their suffix, and the others with the reason."""
    taken: list[FileInfo] = []
    skipped: list[str] = []
    for file in await os.list(folder, is_recursive=True):
        path = PurePosixPath(file.path)
        if path.suffix.lower() not in TEXT_SUFFIXES:
            skipped.append(f"{file.path}: not known as a text file")
        elif file.bytes > MAX_FILE_BYTES:
            skipped.append(f"{file.path}: larger than {MAX_FILE_BYTES} bytes")
        else:
            taken.append(file)
    return taken, skipped


async def indexer(
    os: OS,
    folder: str,
    namespace: str | None = None,
    *,
    paths: Sequence[str] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> JsonObject:
    """Index a folder, or only its files in `paths`.

    Returns `{"namespace", "files", "unchanged", "notes", "lossy", "skipped"}`: `lossy` names files
    with bytes that are not UTF-8, `skipped` those left out, with the reason.
    """
    space = namespace or namespace_of(folder, pid=os.pid)
    skipped: list[str] = []
    if paths is None:
        files, skipped = await text_files(os, folder)
        paths = [file.path for file in files]
    unchanged, notes = 0, 0
    lossy: list[str] = []
    for path in paths:
        file = await read_lossy(os, path)
        if file.is_lossy:
            lossy.append(path)
        added = await _index(os, folder, path, file.text, space, chunk_tokens)
        if added is None:
            unchanged += 1
        else:
            notes += added
    return {
        "namespace": space,
        "files": len(paths),
        "unchanged": unchanged,
        "notes": notes,
        "lossy": lossy,
        "skipped": skipped,
    }


async def _index(
    os: OS, folder: str, path: str, text: str, namespace: str, chunk_tokens: int
) -> int | None:
    """Store one file; the number of its chunks, or None when it is there already."""
    source = _relative(path, folder)
    digest = hashlib.sha256(f"{chunk_tokens}\n{text}".encode()).hexdigest()
    known = await os.retrieve(
        source, k=1, mode="dense", namespaces=[namespace], where={"file": source, "sha256": digest}
    )
    if known:
        return None
    await os.forget(source=source, namespace=namespace)
    chunks = await chunked(os, text, tokens=chunk_tokens)
    if not chunks:
        return 0
    metadata = {"file": source, "sha256": digest}
    await os.remember(
        [
            Note(
                text=chunk.text,
                metadata={**metadata, "chunk": index},
                source=source,
                position=chunk.line,
            )
            for index, chunk in enumerate(chunks)
        ],
        namespace=namespace,
    )
    return len(chunks)


def _relative(path: str, folder: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.relative_to(folder)) if pure.is_relative_to(folder) else path


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
