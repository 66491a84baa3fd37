"""The vector index: a FAISS index beside the database, derived from it and never the truth.

Owns the index in memory and its file. The file ends with a trailer that says which store it belongs
to and up to which note, with a checksum of all before it; a file that fails any check is thrown
away and the index is made again from the database. Not thread-safe: the store's lock serialises it.

Vectors are unit length, so the inner product is the cosine. Flat search is exact and needs no
training; another FAISS index can stand behind `_new_index` without a change elsewhere.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos.memory.folder import INDEX_FILE, replace_durably

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Matrix = NDArray[np.float32]

_MAGIC = b"llmosvec"
_FORMAT = 1
_DIGEST_BYTES = 16
# The file's end: bytes of the JSON trailer before it, checksum of all before the tail, magic.
_TAIL = struct.Struct(f">I{_DIGEST_BYTES}s8s")
_CHUNK_BYTES = 1 << 20

log = logging.getLogger(__name__)


class VectorIndex:
    """Unit vectors by note id, in memory."""

    kind = "flat"

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self._index = _new_index(dimensions)
        self.is_saved = False

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Ids:
        """The ids in the index, sorted."""
        faiss = _faiss()

        return np.sort(faiss.vector_to_array(self._index.id_map).astype(np.int64))

    @property
    def size_bytes(self) -> int:
        """Resident bytes: the vectors, their ids, and the map from id to place."""
        id_bytes, map_entry_bytes = 8, 40
        return len(self) * (4 * self.dimensions + id_bytes + map_entry_bytes)

    def add(self, ids: Sequence[int] | Ids, vectors: Matrix) -> None:
        """Add vectors `(len(ids), dimensions)` under new ids."""
        if len(ids):
            self._index.add_with_ids(vectors, np.asarray(ids, dtype=np.int64))
            self.is_saved = False

    def remove(self, ids: Sequence[int] | Ids) -> None:
        """Remove those of the ids that are here."""
        if len(ids):
            self._index.remove_ids(np.asarray(ids, dtype=np.int64))
            self.is_saved = False

    def search(self, vector: Matrix, k: int, allowed: Ids) -> list[tuple[int, float]]:
        """The k nearest of the `allowed` ids to a unit vector, as (id, cosine), nearest first."""
        faiss = _faiss()

        if not len(allowed) or not len(self):
            return []
        parameters = None
        if len(allowed) < len(self):
            chosen = np.zeros(int(allowed.max()) + 1, dtype=np.bool_)
            chosen[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
            parameters = faiss.SearchParameters(sel=selector)
        with _one_thread():
            scores, ids = self._index.search(
                vector.reshape(1, self.dimensions), min(k, len(allowed)), params=parameters
            )
        found = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        return [(note, score) for note, score in found if note >= 0]

    def save(self, folder: Path, *, store_id: str, last_id: int) -> None:
        """Write the index beside the database, atomically. Raises: OSError."""
        faiss = _faiss()

        trailer = json.dumps(
            {
                "format": _FORMAT,
                "store_id": store_id,
                "dimensions": self.dimensions,
                "kind": self.kind,
                "items": len(self),
                "last_id": last_id,
                "faiss": faiss.__version__,
            }
        ).encode()
        digest = blake2b(digest_size=_DIGEST_BYTES)
        building = folder / (INDEX_FILE + ".new")
        try:
            with building.open("wb") as file:

                def write(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                # Through our own file, because FAISS's does not notice a disk that fills on close.
                faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _CHUNK_BYTES))
                write(trailer)
                file.write(_TAIL.pack(len(trailer), digest.digest(), _MAGIC))
            replace_durably(building, folder / INDEX_FILE)
        finally:
            building.unlink(missing_ok=True)
        self.is_saved = True

    @classmethod
    def load(cls, folder: Path, *, dimensions: int, store_id: str, last_id: int) -> VectorIndex:
        """The index from its file, or an empty one when the file is missing or not to be trusted.

        `last_id` is the newest id that the database ever gave: an index that has seen more belongs
        to a later state of a database that was put back, and its ids would mean other notes.
        """
        path = folder / INDEX_FILE
        index = cls(dimensions)
        if not path.exists():
            return index
        problem = index._load(path, store_id, last_id)
        if problem is not None:
            log.warning("%s is not used (%s); making the index again", path, problem)
            path.unlink()
            return cls(dimensions)
        return index

    def _load(self, path: Path, store_id: str, last_id: int) -> str | None:
        """Read the file; what is wrong with it, or None."""
        faiss = _faiss()

        trailer = _read_trailer(path)
        if trailer is None:
            return "it is cut short or its checksum does not match"
        if trailer["format"] != _FORMAT or trailer["kind"] != self.kind:
            return "it has another format"
        if trailer["store_id"] != store_id or trailer["dimensions"] != self.dimensions:
            return "it belongs to another store"
        if trailer["last_id"] > last_id:
            return "it is newer than the database"
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as problem:  # what FAISS raises for a version that it cannot read
            return str(problem).splitlines()[0]
        self.is_saved = True
        return None


def unit_vectors(vectors: Sequence[Sequence[float]], dimensions: int) -> Matrix:
    """Vectors as a matrix `(len(vectors), dimensions)` of unit rows.

    Raises: ValueError that says what is wrong: another dimension, not finite, or all zero.
    """
    if wrong := {len(vector) for vector in vectors} - {dimensions}:
        raise ValueError(f"a vector has {min(wrong)} dimensions, the store {dimensions}")
    matrix = np.asarray(vectors, dtype=np.float64).reshape(len(vectors), dimensions)
    if not np.isfinite(matrix).all():
        raise ValueError("a vector holds a value that is not a finite number")
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError("a vector is all zeros and has no direction")
    matrix = matrix / largest  # so that squares of huge or tiny values stay in range
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _faiss() -> Any:
    """The library, loaded when first used; its stubs do not know what its Python layer adds."""
    import faiss

    return faiss


def _new_index(dimensions: int) -> Any:
    faiss = _faiss()

    return faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))


@contextmanager
def _one_thread() -> Generator[None]:
    """Search on the calling thread alone.

    A scan of 10,000 vectors takes 0.3 ms there. FAISS's thread team ends each scan at a barrier,
    and while a model decodes on all cores that barrier waits for them: 24 to 56 ms, measured.
    """
    faiss = _faiss()

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _read_trailer(path: Path) -> dict[str, Any] | None:
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
