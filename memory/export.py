"""Notes out of the store into one file, as they were at one moment."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmos.memory.filters import checked_namespace
from llmos.memory.folder import replace_durably
from llmos.memory.notes import NoteRow
from llmos.memory.portable import BATCH_RECORDS, Header, Record, write_jsonl, write_parquet
from llmos.memory.reader import Reader
from llmos.memory.store import Store
from llmos.memory.vector_model import model_text
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Fact

_WRITERS = {".jsonl": write_jsonl, ".parquet": write_parquet}


def export(
    store: Store,
    path: Path,
    *,
    namespaces: Sequence[str] | None = None,
    with_vectors: bool = True,
) -> int:
    """Write the notes of some namespaces (None: all), history included; how many there were.

    The suffix says the form: `.jsonl` or `.parquet`. The file is there whole or not at all.
    Raises: SyscallError("invalid") for another suffix; SyscallError("storage").
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise SyscallError(
            "invalid", f"{path.name}: name the file .jsonl or .parquet", field="path"
        )
    writing = path.with_name(path.name + ".new")
    try:
        with store.reading() as reader, _one_moment(reader.sql):
            of_store = Header(model_text(reader.sql), reader.dimensions)
            header = of_store if with_vectors else Header()
            with _file_errors(path):
                written = write(writing, header, _records(reader, namespaces, with_vectors))
                replace_durably(writing, path)
    finally:
        writing.unlink(missing_ok=True)
    return written


@contextmanager
def _file_errors(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as problem:
        raise SyscallError(
            "storage",
            f"cannot write {path}: {problem.strerror}; check the folder and its free space",
            path=str(path),
        ) from problem


@contextmanager
def _one_moment(sql: sqlite3.Connection) -> Generator[None]:
    """Let every read of the block see the same state."""
    sql.execute("BEGIN")
    try:
        yield
    finally:
        sql.execute("ROLLBACK")


def _records(
    reader: Reader, namespaces: Sequence[str] | None, with_vectors: bool
) -> Iterator[Record]:
    last = 0
    while ids := _next_ids(reader, namespaces, last):
        last = ids[-1]
        facts = _facts(reader.sql, ids)
        vectors = reader.vectors(ids).tolist() if with_vectors else [None] * len(ids)
        notes = reader.notes(ids)
        for note, vector in zip(ids, vectors, strict=True):
            yield _record(notes[note], facts.get(note), vector)


def _next_ids(reader: Reader, namespaces: Sequence[str] | None, last: int) -> list[int]:
    """The next notes by id: a whole comes before its parts, and what is superseded before what
    supersedes it."""
    chosen, names = "", list[str]()
    if namespaces is not None:
        names = [checked_namespace(name) for name in namespaces]
        chosen = f" AND namespace IN ({', '.join('?' * len(names))})"
    rows = reader.sql.execute(
        "SELECT id FROM notes WHERE id > ? AND (expires_at IS NULL OR expires_at > ?)"
        f"{chosen} ORDER BY id LIMIT {BATCH_RECORDS}",
        (last, reader.now, *names),
    )
    return [note for (note,) in rows]


def _facts(sql: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Fact]:
    rows = sql.execute(
        "SELECT note, told, is_single FROM edges WHERE note BETWEEN ? AND ?", (ids[0], ids[-1])
    )
    facts: dict[int, Fact] = {}
    for note, told, is_single in rows:
        subject, relation, target = json.loads(told)
        facts[note] = Fact(
            subject=subject, relation=relation, object=target, is_single=bool(is_single)
        )
    return facts


def _record(row: NoteRow, fact: Fact | None, vector: Sequence[float] | None) -> Record:
    note = Note.model_validate(
        {
            "text": row.text,
            "metadata": row.metadata,
            "source": row.source,
            "position": row.position,
            "expires_at": row.expires_at,
            "kind": row.kind,
            "importance": row.importance,
            "valid_from": row.valid_from,
            "fact": fact,
            "parent": row.parent,
        }
    )
    return Record(
        note,
        id=row.id,
        namespace=row.namespace,
        owner=row.owner,
        created_at=row.created_at,
        valid_to=row.valid_to,
        superseded_by=row.superseded_by,
        vector=vector,
    )
