"""The stores that are compared, each behind the same few methods.

Every side keeps vectors, texts and metadata, and a search gives the numbers of the k nearest items
with their texts read; only raw FAISS keeps vectors alone, because it is the limit. `LADDERS` has
each side's settings from cheap to thorough: ours chooses for itself and has none, the others are
tuned by the benchmark. Clients' libraries are imported when a side is opened.

What an acknowledged add has on the disk was read from each side's system calls (`strace -f -e
trace=fsync,fdatasync,rename` around single adds):

- ours, sqlite-vec: a commit to SQLite's write-ahead log with synchronous=FULL, one fdatasync.
- chromadb 1.5.9: two commits to SQLite with a rollback journal, eight fsyncs.
- lancedb 0.40.0: new files, renamed into place and never synced. They survive a killed process but
  not a power cut, so its adds count as not durable (`DURABLE`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.corpora import DIMENSIONS, Batch, Where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

NAMESPACE = "bench"
_MOST_CANDIDATES = 4096  # what one query of sqlite-vec may ask for
_FEWEST_INDEXED = 5_000  # lancedb reads fewer vectors one and all
_REFINED = 3  # times k candidates are ranked by their whole vectors
FILTER_FIELDS = ("half", "percent", "myriad", "part")


class Side(Protocol):
    """One store, opened in a folder that is its own."""

    def add(self, batch: Batch) -> None:
        """Add items; returns when the store says that they are kept."""
        ...

    def delete(self, numbers: Sequence[int]) -> None: ...

    def build(self) -> None:
        """Bring the index to what was added; returns when searches use it."""
        ...

    def tune(self, effort: int) -> None:
        """Search with one of the side's `LADDERS` settings from now on."""
        ...

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        """The numbers of the nearest items that a filter lets through, their texts read."""
        ...

    def close(self) -> None: ...


class Ours:
    """The memory store of llmos, below its syscalls."""

    def __init__(self, folder: Path) -> None:
        from llmos.memory.query import Query
        from llmos.memory.store import Store
        from llmos.syscalls.calls import Note

        self._note, self._query = Note, Query
        self._store = Store(folder, dimensions=DIMENSIONS)

    def add(self, batch: Batch) -> None:
        notes = [
            self._note(text=text, metadata=metadata, position=number)
            for number, (text, metadata) in enumerate(
                zip(batch.texts, batch.metadata, strict=True), batch.first
            )
        ]
        self._store.remember(NAMESPACE, notes, batch.vectors)

    def delete(self, numbers: Sequence[int]) -> None:
        # Numbers are added in order to an empty store, which counts its ids from 1.
        self._store.forget(NAMESPACE, ids=[number + 1 for number in numbers])

    def build(self) -> None:
        self._store.build()
        self._store.flush()

    def tune(self, effort: int) -> None: ...

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        query = self._query(
            text="",
            vector=vector,
            namespaces=[NAMESPACE],
            k=k,
            mode="dense",
            where=dict([where]) if where else {},
        )
        hits = self._store.retrieve(query).hits
        return [hit.position for hit in hits if hit.position is not None]

    def about(self) -> dict[str, Any]:
        """What the store says of its index."""
        return self._store.stat().model_dump(mode="json", exclude={"namespaces"})

    def close(self) -> None:
        self._store.close()


class Faiss:
    """A flat FAISS index in memory, saved as a file: exact, with neither texts nor metadata."""

    def __init__(self, folder: Path) -> None:
        import faiss

        self._faiss: Any = faiss
        self._path = folder / "flat.faiss"
        folder.mkdir(parents=True, exist_ok=True)
        self._index: Any = (
            faiss.read_index(str(self._path))
            if self._path.exists()
            else faiss.IndexFlatIP(DIMENSIONS)
        )

    def add(self, batch: Batch) -> None:
        self._index.add(batch.vectors)

    def delete(self, numbers: Sequence[int]) -> None:
        raise NotImplementedError("a flat index moves its items when one is removed")

    def build(self) -> None:
        self._faiss.write_index(self._index, str(self._path))

    def tune(self, effort: int) -> None: ...

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        assert where is None, "raw FAISS keeps no metadata"
        return self._index.search(vector.reshape(1, -1), k)[1][0].tolist()

    def close(self) -> None: ...


class Chroma:
    """chromadb's persistent client in this process: HNSW, cosine, its default graph."""

    def __init__(self, folder: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        self._client = chromadb.PersistentClient(
            str(folder), settings=Settings(anonymized_telemetry=False)
        )
        self._items: Any = self._client.get_or_create_collection(
            "items",
            configuration={"hnsw": {"space": "cosine"}},
            embedding_function=None,
        )
        self._most: int = self._client.get_max_batch_size()

    def add(self, batch: Batch) -> None:
        for start in range(0, len(batch.texts), self._most):
            part = slice(start, start + self._most)
            self._items.add(
                ids=[str(batch.first + start + place) for place in range(len(batch.texts[part]))],
                embeddings=batch.vectors[part],
                documents=batch.texts[part],
                metadatas=batch.metadata[part],
            )

    def delete(self, numbers: Sequence[int]) -> None:
        self._items.delete(ids=[str(number) for number in numbers])

    def build(self) -> None: ...

    def tune(self, effort: int) -> None:
        self._items.modify(configuration={"hnsw": {"ef_search": effort}})

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        found = self._items.query(
            query_embeddings=vector.reshape(1, -1),
            n_results=k,
            where=dict([where]) if where else None,
            include=["documents", "distances"],
        )
        return [int(number) for number in found["ids"][0]]

    def close(self) -> None:
        self._client.close()


class Lance:
    """lancedb's embedded client: IVF of 8-bit vectors, re-ranked by the stored ones."""

    def __init__(self, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        self._pa: Any = pa
        self._schema = pa.schema(
            [
                ("number", pa.int64()),
                ("text", pa.string()),
                ("vector", pa.list_(pa.float32(), DIMENSIONS)),
                *((field, pa.int64()) for field in FILTER_FIELDS),
            ]
        )
        database: Any = lancedb.connect(str(folder))
        self._items: Any = database.create_table("items", schema=self._schema, exist_ok=True)
        self._effort = 20

    def add(self, batch: Batch) -> None:
        vectors = self._pa.FixedSizeListArray.from_arrays(
            self._pa.array(batch.vectors.reshape(-1)), DIMENSIONS
        )
        columns = [range(batch.first, batch.first + len(batch.texts)), batch.texts, vectors]
        columns += [[entry[field] for entry in batch.metadata] for field in FILTER_FIELDS]
        self._items.add(self._pa.table(columns, schema=self._schema))

    def delete(self, numbers: Sequence[int]) -> None:
        self._items.delete(f"number IN ({', '.join(map(str, numbers))})")

    def build(self) -> None:
        from lancedb.index import BTree, IvfSq

        self._items.optimize()
        rows = self._items.count_rows()
        if rows >= _FEWEST_INDEXED:
            partitions = max(8, min(round(rows**0.5), rows // 256))
            config = IvfSq(distance_type="cosine", num_partitions=partitions)
            self._items.create_index("vector", config=config)
        for field in FILTER_FIELDS:
            self._items.create_index(field, config=BTree())

    def tune(self, effort: int) -> None:
        self._effort = effort

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        query = (
            self._items.search(vector, vector_column_name="vector")
            .distance_type("cosine")
            .nprobes(self._effort)
            .refine_factor(_REFINED)
            .select(["number", "text", "_distance"])
            .limit(k)
        )
        if where:
            query = query.where(f"{where[0]} = {where[1]}", prefilter=True)
        return query.to_arrow()["number"].to_pylist()

    def close(self) -> None: ...


class SqliteVec:
    """sqlite-vec's vec0 table, WAL and synchronous=FULL: every vector is read, or every bit of it.

    An effort of 0 is exact; another is how many times k candidates are taken by their signs alone
    and ranked by their vectors, as its documentation shows.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = _connect(folder / "items.db")
        self._reader = _connect(folder / "items.db")
        self._writing, self._reading = Lock(), Lock()
        fields = ", ".join(f"{field} INTEGER" for field in FILTER_FIELDS)
        self._writer.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS items USING vec0(number INTEGER PRIMARY KEY,"
            f" vector FLOAT[{DIMENSIONS}] distance_metric=cosine, signs BIT[{DIMENSIONS}],"
            f" {fields}, +text TEXT)"
        )
        self._effort = 0

    def add(self, batch: Batch) -> None:
        rows = [
            (number, vector.tobytes(), *map(entry.__getitem__, FILTER_FIELDS), text)
            for number, (vector, text, entry) in enumerate(
                zip(batch.vectors, batch.texts, batch.metadata, strict=True), batch.first
            )
        ]
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(
                f"INSERT INTO items (number, vector, signs, {', '.join(FILTER_FIELDS)}, text)"
                " VALUES (?1, ?2, vec_quantize_binary(?2), ?3, ?4, ?5, ?6, ?7)",
                rows,
            )
            self._add_texts(batch)
            self._writer.execute("COMMIT")

    def _add_texts(self, batch: Batch) -> None: ...

    def delete(self, numbers: Sequence[int]) -> None:
        with self._writing:
            self._writer.execute(
                "DELETE FROM items WHERE number IN (SELECT value FROM json_each(?))",
                (json.dumps(list(numbers)),),
            )

    def build(self) -> None:
        with self._writing:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def tune(self, effort: int) -> None:
        self._effort = effort

    def search(self, vector: Vector, k: int, where: Where | None) -> list[int]:
        condition, values = (f" AND {where[0]} = ?3", where[1:]) if where else ("", ())
        if self._effort:
            k, best = min(_MOST_CANDIDATES, k * self._effort), k
            command = (
                "WITH near AS MATERIALIZED (SELECT number, text, vector FROM items"
                f" WHERE signs MATCH vec_quantize_binary(?1) AND k = ?2{condition})"
                " SELECT number, text FROM near"
                f" ORDER BY vec_distance_cosine(vector, ?1) LIMIT {best}"
            )
        else:
            command = f"SELECT number, text FROM items WHERE vector MATCH ?1 AND k = ?2{condition}"
        with self._reading:
            found = self._reader.execute(command, (vector.tobytes(), k, *values)).fetchall()
        return [number for number, _ in found]

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class SqliteVecText(SqliteVec):
    """sqlite-vec beside an FTS5 table of the same texts, in one transaction: what a search by
    words needs, and ours and chromadb keep as well. It takes adds only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._writer.execute("CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(text)")

    def _add_texts(self, batch: Batch) -> None:
        self._writer.executemany(
            "INSERT INTO texts (rowid, text) VALUES (?, ?)", enumerate(batch.texts, batch.first)
        )


def _connect(path: Path) -> sqlite3.Connection:
    import sqlite_vec

    sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60.0)
    if hasattr(sql, "enable_load_extension"):
        sql.enable_load_extension(True)
        sqlite_vec.load(sql)
    else:  # a Python built without it, on a SQLite that has it
        sql.close()
        _load_for_all(sqlite_vec.loadable_path())
        sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60.0)
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = FULL")
    return sql


def _load_for_all(extension: str) -> None:
    """Have the SQLite library itself load sqlite-vec into each new connection of this process.

    Source: https://www.sqlite.org/c3ref/auto_extension.html; a second registration does nothing.
    """
    import _sqlite3
    import ctypes

    library = ctypes.CDLL(_sqlite3.__file__)  # brings the library that it is linked with
    entry = ctypes.CDLL(extension + ".so").sqlite3_vec_init
    code = library.sqlite3_auto_extension(entry)
    if code != sqlite3.SQLITE_OK:
        raise RuntimeError(f"SQLite cannot load {extension}: code {code}")


SIDES: Mapping[str, Callable[[Path], Side]] = {
    "ours": Ours,
    "faiss_flat": Faiss,
    "chromadb": Chroma,
    "lancedb": Lance,
    "sqlite_vec": SqliteVec,
    "sqlite_vec_text": SqliteVecText,
}
PEERS = ("chromadb", "lancedb", "sqlite_vec")
_PACKAGES: Mapping[str, str] = {
    **{name: name for name in PEERS},
    "sqlite_vec_text": "sqlite_vec",
}
# Whether an add is on the disk when it returns.
DURABLE: Mapping[str, bool] = {
    "ours": True,
    "chromadb": True,
    "lancedb": False,
    "sqlite_vec": True,
    "sqlite_vec_text": True,
}
# What a search looks at: chromadb's `ef_search`, lancedb's `nprobes`, see `SqliteVec`. 0 is exact,
# or no setting.
LADDERS: Mapping[str, Sequence[int]] = {
    "ours": (0,),
    "faiss_flat": (0,),
    "chromadb": (20, 40, 80, 160, 320, 640),
    "lancedb": (5, 10, 20, 40, 80, 160, 320, 1000),
    "sqlite_vec": (0, 10, 40, 160),
    "sqlite_vec_text": (0, 10, 40, 160),
}


def installed(name: str) -> bool:
    """Whether a side's package is here; `pip install 'llmos[bench]'` brings all of them."""
    from importlib.util import find_spec

    package = _PACKAGES.get(name)
    return package is None or find_spec(package) is not None
