"""Records into the store: with the ids, times and links that they get here.

A record's vector is kept only where it is of the store's own embedding model; other texts are
embedded again. Importing the same file twice stores nothing twice. What a record refers to by id
must come before it, as `export.py` writes them; which notes supersede others is put together at the
end, so one integer a record is held in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llmos.memory.ingest.intake import Embed, Embedded
from llmos.memory.peers import chroma_records, faiss_records
from llmos.memory.portable import Header, Record, Records, read_jsonl, read_parquet
from llmos.memory.store import Store
from llmos.memory.vector_model import model_text
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError

BATCH_NOTES = 256
# Semantic notes as near as this have the same text; less near ones were kept apart before.
_SAME_COSINE = 1.0


class Imported(NamedTuple):
    """What came of records; `embedded` of the notes got a new vector."""

    notes: int
    duplicates: int
    embedded: int


def open_records(
    path: Path,
    *,
    origin: str | None = None,
    texts: Path | None = None,
    collection: str | None = None,
) -> Records:
    """Open what is to be imported; `origin` None goes by what the path looks like.

    Raises: SyscallError("not_found") when nothing is there; ("invalid") when it is nothing known.
    """
    if not path.exists():
        raise SyscallError("not_found", f"there is no {path}", what="file", name=str(path))
    match origin or _origin_of(path):
        case "jsonl":
            return read_jsonl(path)
        case "parquet":
            return read_parquet(path)
        case "chroma":
            return Records(Header(), chroma_records(path, collection))
        case "faiss":
            if texts is None:
                raise SyscallError(
                    "invalid",
                    "a FAISS index holds no texts: name their JSON lines too",
                    field="texts",
                )
            return Records(Header(), faiss_records(path, texts))
        case _:
            raise SyscallError(
                "invalid",
                f"{path} is no .jsonl, .parquet, chroma folder or .faiss index; say what it is",
                field="origin",
            )


def bring_in(
    store: Store,
    opened: Records,
    *,
    embed: Embed,
    namespace: str | None = None,
    keeps_vectors: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Imported:
    """Store records, in `namespace` or in the one that each names.

    `keeps_vectors` says that they are of the store's model where the file does not say it.
    Raises: SyscallError("invalid") for a record without a namespace, or a vector of another size.
    """
    run = _Import(store, embed, namespace, keeps_vectors or _is_of_its_model(store, opened.header))
    for record in opened.records:
        run.add(record)
        if on_progress is not None:
            on_progress(run.looked_at)
    run.flush()
    run.link()
    return Imported(run.notes, run.duplicates, run.embedded)


class _Import:
    def __init__(
        self, store: Store, embed: Embed, namespace: str | None, keeps_vectors: bool
    ) -> None:
        self._store = store
        self._embed = embed
        self._namespace = namespace
        self._keeps_vectors = keeps_vectors
        self._waiting: list[Record] = []
        self._waiting_ids: set[int] = set()
        self._ids: dict[int, int] = {}  # what a note was called there, to what it is called here
        self._ended: list[tuple[int, int]] = []  # (note here, what supersedes it there)
        self.looked_at = self.notes = self.duplicates = self.embedded = 0

    def add(self, record: Record) -> None:
        """Let a record wait for its batch, whose notes are stored alike."""
        self.looked_at += 1
        namespace = self._namespace or record.namespace
        if namespace is None:
            raise SyscallError(
                "invalid", "the notes name no namespace: say where to put them", field="namespace"
            )
        record = record._replace(namespace=namespace)
        first = self._waiting[0] if self._waiting else record
        if (
            len(self._waiting) == BATCH_NOTES
            or _how(first) != _how(record)
            or record.note.parent in self._waiting_ids
        ):
            self.flush()
        if record.note.parent is not None:
            parent = self._ids.get(record.note.parent)
            record = record._replace(note=record.note.model_copy(update={"parent": parent}))
        self._waiting.append(record)
        if record.id is not None:
            self._waiting_ids.add(record.id)

    def flush(self) -> None:
        """Store what waits."""
        batch, self._waiting, self._waiting_ids = self._waiting, [], set()
        if not batch:
            return
        namespace = batch[0].namespace
        assert namespace is not None
        vectors, model = self._vectors(batch)
        done = self._store.remember(
            namespace,
            [_since(record) for record in batch],
            vectors,
            owner=batch[0].owner,
            merge_above=_SAME_COSINE if batch[0].note.kind == "semantic" else None,
            model=model,
        )
        self.notes += len(batch) - done.duplicates
        self.duplicates += done.duplicates
        for record, note in zip(batch, done.ids, strict=True):
            if record.id is not None:
                self._ids[record.id] = note
            if record.superseded_by is not None:
                self._ended.append((note, record.superseded_by))
        self._store.record(lambda sql: _put_times(sql, batch, done.ids))

    def link(self) -> None:
        """Say of each note that was superseded by which."""
        pairs = [(self._ids[by], note) for note, by in self._ended if by in self._ids]

        def write(sql: sqlite3.Connection) -> None:
            sql.executemany(
                "UPDATE notes SET superseded_by = ? WHERE id = ? AND superseded_by IS NULL", pairs
            )

        self._store.record(write)

    def _vectors(self, batch: Sequence[Record]) -> Embedded:
        kept: dict[int, Sequence[float]] = {
            place: record.vector
            for place, record in enumerate(batch)
            if self._keeps_vectors and record.vector is not None
        }
        missing = [place for place in range(len(batch)) if place not in kept]
        model = None
        if missing:
            made = self._embed([batch[place].note.text for place in missing])
            kept.update(zip(missing, made.vectors, strict=True))
            model = made.model
            self.embedded += len(missing)
        return Embedded([kept[place] for place in range(len(batch))], model)


def _how(record: Record) -> tuple[str | None, str | None, bool]:
    """What notes of one call have in common."""
    return record.namespace, record.owner, record.note.kind == "semantic"


def _since(record: Record) -> Note:
    """The note, with a fact's beginning said: it has been so since it was first remembered."""
    note = record.note
    if note.fact is None or note.valid_from is not None or record.created_at is None:
        return note
    return note.model_copy(update={"valid_from": record.created_at})


def _put_times(sql: sqlite3.Connection, batch: Sequence[Record], ids: Sequence[int]) -> None:
    """Give notes the times that they had, where these are earlier."""
    sql.executemany(
        "UPDATE notes SET created_at = ?1 WHERE id = ?2 AND created_at > ?1",
        [
            (record.created_at, note)
            for record, note in zip(batch, ids, strict=True)
            if record.created_at is not None
        ],
    )
    sql.executemany(
        "UPDATE notes SET valid_to = ?1 WHERE id = ?2 AND valid_to IS NULL",
        [
            (record.valid_to, note)
            for record, note in zip(batch, ids, strict=True)
            if record.valid_to is not None
        ],
    )


def _is_of_its_model(store: Store, header: Header) -> bool:
    with store.reading() as reader:
        model = model_text(reader.sql)
    return model is not None and model == header.embedding_model


def _origin_of(path: Path) -> str | None:
    if path.is_dir():
        return "chroma" if (path / "chroma.sqlite3").exists() else None
    suffix = path.suffix.lower()
    if suffix in (".faiss", ".index"):
        return "faiss"
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffix)
