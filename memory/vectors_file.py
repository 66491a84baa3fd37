"""A vector index as a file: trusted only when whole, and when it belongs to this store.

The file ends with a trailer that says which store it belongs to and which state of it, with a
checksum of all before it. A file that fails any check is thrown away, and the index is made again
from the database.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmos.memory.changes import Version
from llmos.memory.faiss_library import faiss_library
from llmos.memory.folder import INDEX_FILE, replace_durably
from llmos.memory.vectors import FlatIndex, Index, ListIndex, Recall

_MAGIC = b"llmosvec"
_FORMAT = 3
_DIGEST_BYTES = 16
# The file's end: bytes of the JSON trailer before it, checksum of all before the tail, magic.
_TAIL = struct.Struct(f">I{_DIGEST_BYTES}s8s")
_CHUNK_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An index from its file, and the state of the store that it holds."""

    index: Index
    version: Version


def save(index: Index, folder: Path, *, store_id: str, version: Version) -> None:
    """Write an index beside the database, atomically. Raises: OSError."""
    faiss = faiss_library()

    trailer: dict[str, Any] = {
        "format": _FORMAT,
        "store_id": store_id,
        "version": list(version),
        "dimensions": index.dimensions,
        "kind": index.kind,
        "items": len(index),
        "faiss": faiss.__version__,
    }
    if isinstance(index, ListIndex):
        trailer |= {
            "probes": index.probes,
            "fewest": index.fewest,
            "recall": list(index.recall),
            "trained_on": index.trained_on,
        }
    text = json.dumps(trailer).encode()
    digest = blake2b(digest_size=_DIGEST_BYTES)
    building = folder / (INDEX_FILE + ".new")
    try:
        with building.open("wb") as file:

            def write(chunk: bytes) -> None:
                digest.update(chunk)
                file.write(chunk)

            # Through our own file, because FAISS's does not notice a disk that fills on close.
            faiss.write_index(index.library, faiss.PyCallbackIOWriter(write, _CHUNK_BYTES))
            write(text)
            file.write(_TAIL.pack(len(text), digest.digest(), _MAGIC))
        replace_durably(building, folder / INDEX_FILE)
    finally:
        building.unlink(missing_ok=True)


def load(
    folder: Path, *, dimensions: int, store_id: str, newest: Callable[[], Version]
) -> Loaded | None:
    """The index from its file; None when the file is missing or not to be trusted, which ends it.

    `newest` gives the state of the database, after the file was read: an index that has seen more
    belongs to a later state of a database that was put back, and its ids would mean other notes.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    problem = loaded = None
    trailer = read_trailer(path)
    if trailer is None:
        problem = "it is cut short or its checksum does not match"
    elif trailer["format"] != _FORMAT:
        problem = "it has another format"
    elif trailer["store_id"] != store_id or trailer["dimensions"] != dimensions:
        problem = "it belongs to another store"
    else:
        version, now = Version(*trailer["version"]), newest()
        if version.last_id > now.last_id or version.seq > now.seq:
            problem = "it is newer than the database"
        elif version.generation != now.generation:
            problem = "its vectors were all replaced"
        else:
            try:
                loaded = Loaded(_index(faiss_library().read_index(str(path)), trailer), version)
            except RuntimeError as error:  # what FAISS raises for a version that it cannot read
                problem = str(error).splitlines()[0]
    if problem is not None:
        log.warning("%s is not used (%s); making the index again", path, problem)
        # Gone, before the database grows past the state that the file was of.
        path.unlink(missing_ok=True)
    return loaded


def _index(library: Any, trailer: dict[str, Any]) -> Index:
    if trailer["kind"] == FlatIndex.kind:
        return FlatIndex(trailer["dimensions"], library)
    return ListIndex(
        library,
        probes=trailer["probes"],
        fewest=trailer["fewest"],
        recall=Recall(*trailer["recall"]),
        trained_on=trailer["trained_on"],
    )


def read_trailer(path: Path) -> dict[str, Any] | None:
    """What the file says about itself; None unless all of it is as it was written."""
    before_tail = path.stat().st_size - _TAIL.size
    if before_tail < 0:
        return None
    digest = blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        left = before_tail
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        trailer_bytes, expected, magic = _TAIL.unpack(file.read(_TAIL.size))
        if magic != _MAGIC or digest.digest() != expected:
            return None
        file.seek(before_tail - trailer_bytes)
        return json.loads(file.read(trailer_bytes))
