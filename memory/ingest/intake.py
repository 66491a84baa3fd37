"""Files on their way into the store: their notes wait for a batch, are embedded and remembered.

A new file is in the manifest before its first note is stored, new notes are stored before the old
ones go, and the manifest's row is completed last: after a crash the file counts as changed, and
what was stored is found to be there. Never more than a batch waits, however large a file is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmos.memory.ingest import manifest
from llmos.memory.ingest.walk import Found
from llmos.memory.store import Store
from llmos.memory.vector_model import model_text
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Remembered


class Embedded(NamedTuple):
    """Unit vectors of some texts, and the store's text of the model that made them (None: not
    checked)."""

    vectors: Sequence[Sequence[float]]
    model: str | None = None


Embed = Callable[[Sequence[str]], Embedded]

BATCH_NOTES = 256


@dataclass(slots=True, eq=False)
class Incoming:
    """A file as it comes in, read at a time: the notes that it has and those that it gets."""

    found: Found
    digest: bytes
    read_at: float
    old: frozenset[int] = frozenset()
    old_by_text: Mapping[str, int] = field(default_factory=dict[str, int])
    positions: dict[int, int] = field(default_factory=dict[int, int])  # of the notes it gets
    is_known: bool = True  # it has a row in the manifest
    is_touched: bool = False  # its content is known: only its time is new

    @property
    def path(self) -> str:
        return str(self.found.path)


@dataclass(slots=True)
class Stored:
    """What has been written so far, in notes."""

    notes: int = 0
    reused: int = 0
    forgotten: int = 0


class _Waiting(NamedTuple):
    file: Incoming
    note: Note


class _Old(NamedTuple):
    """Vectors that the store has, by the places of the notes that wait, and whose they are."""

    vectors: Mapping[int, Sequence[float]]
    model: str | None


class Intake:
    """The way into one namespace of a store. One thread; every method may block on the disk."""

    def __init__(
        self, store: Store, namespace: str, embed: Embed, *, owner: str | None = None
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._embed = embed
        self._owner = owner
        self._waiting: list[_Waiting] = []
        self._whole: list[Incoming] = []  # to be written in the manifest with the next batch
        self.stored = Stored()

    def known(self, found: Found) -> manifest.Known | None:
        """What the manifest says of a file."""
        with self._store.reading() as reader:
            return manifest.find(reader.sql, self._namespace, str(found.path))

    def begin(self, found: Found, digest: bytes, *, is_known: bool) -> Incoming:
        """A file that is new or changed, with the notes that it has now."""
        with self._store.reading() as reader:
            old = reader.sql.execute(
                "SELECT id, text FROM notes WHERE namespace = ? AND source = ?",
                (self._namespace, str(found.path)),
            ).fetchall()
        ids = frozenset(note for note, _ in old)
        by_text = {text: note for note, text in old}
        return Incoming(found, digest, reader.now, ids, by_text, is_known=is_known)

    def add(self, file: Incoming, note: Note) -> None:
        """Let a file's next note wait for its batch."""
        self._waiting.append(_Waiting(file, note))
        if len(self._waiting) >= BATCH_NOTES:
            self._store_waiting()

    def complete(self, file: Incoming) -> None:
        """All of a file's notes have been added."""
        self._whole.append(file)
        if len(self._whole) >= BATCH_NOTES:
            self.flush()

    def touch(self, found: Found, digest: bytes) -> None:
        """A file is as it was, at another time."""
        with self._store.reading() as reader:
            now = reader.now
        self.complete(Incoming(found, digest, now, is_touched=True))

    def abandon(self, file: Incoming) -> None:
        """A file could not be read to its end: it keeps the notes that it had."""
        self._waiting = [one for one in self._waiting if one.file is not file]
        self._forget([note for note in file.positions if note not in file.old])

    def forget(self, path: str) -> None:
        """A file is gone: forget its notes and that it was known."""
        self.stored.forgotten += self._store.forget(self._namespace, source=path).count
        self._store.record(lambda sql: manifest.drop(sql, self._namespace, path))

    def below(self, folder: str, after: str) -> list[str]:
        """Some known files at or below a folder, as `manifest.below`."""
        with self._store.reading() as reader:
            return manifest.below(reader.sql, self._namespace, folder, after)

    def flush(self) -> None:
        """Store all that waits, and write the whole files in the manifest."""
        self._store_waiting()
        if not self._whole:
            return
        whole, self._whole = self._whole, []
        self._forget([note for file in whole for note in _stale(file)])
        self._store.record(lambda sql: self._write_down(sql, whole))

    # --- internals --------------------------------------------------------------------------------

    def _store_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self._begin({one.file.path: one.file for one in waiting if not one.file.is_known})
        old = self._old_vectors(waiting)
        try:
            remembered = self._remember(waiting, old)
        except SyscallError as problem:
            if problem.code != "busy":
                raise
            old = _Old({}, None)  # the store's model was changed: theirs are no good any more
            remembered = self._remember(waiting, old)
        for one, note in zip(waiting, remembered.ids, strict=True):
            assert one.note.position is not None
            one.file.positions.setdefault(note, one.note.position)
        self.stored.notes += len(waiting) - remembered.duplicates
        self.stored.reused += len(old.vectors)

    def _begin(self, files: Mapping[str, Incoming]) -> None:
        """Put new files into the manifest, so that a crash leaves no note of an unknown file."""
        if not files:
            return

        def write(sql: sqlite3.Connection) -> None:
            for path in files:
                manifest.begin(sql, self._namespace, path)

        self._store.record(write)
        for file in files.values():
            file.is_known = True

    def _remember(self, waiting: Sequence[_Waiting], old: _Old) -> Remembered:
        """Store notes with the vectors that are known, or with new ones.

        Raises: SyscallError("busy") when the store's model was changed meanwhile.
        """
        vectors = dict(old.vectors)
        model = old.model
        unknown = [place for place in range(len(waiting)) if place not in vectors]
        if unknown:
            made = self._embed([waiting[place].note.text for place in unknown])
            if vectors and None not in (model, made.model) and model != made.model:
                raise SyscallError("busy", "the store's embedding model was changed")
            vectors.update(zip(unknown, made.vectors, strict=True))
            model = made.model
        return self._store.remember(
            self._namespace,
            [one.note for one in waiting],
            [vectors[place] for place in range(len(waiting))],
            owner=self._owner,
            model=model,
        )

    def _old_vectors(self, waiting: Sequence[_Waiting]) -> _Old:
        """The vectors of the same texts among the files' old notes."""
        same = (one.file.old_by_text.get(one.note.text) for one in waiting)
        kept = {place: note for place, note in enumerate(same) if note is not None}
        if not kept:
            return _Old({}, None)
        with self._store.reading() as reader:
            try:
                found = reader.vectors(list(kept.values()))
            except (KeyError, ValueError):  # somebody has just forgotten some of them
                return _Old({}, None)
            return _Old(dict(zip(kept, found.tolist(), strict=True)), model_text(reader.sql))

    def _forget(self, notes: Sequence[int]) -> None:
        if notes:
            self.stored.forgotten += self._store.forget(self._namespace, ids=notes).count

    def _write_down(self, sql: sqlite3.Connection, files: Sequence[Incoming]) -> None:
        for file in files:
            manifest.put(
                sql,
                self._namespace,
                file.path,
                size_bytes=file.found.size_bytes,
                mtime_ns=file.found.mtime_ns,
                digest=file.digest,
                chunks=None if file.is_touched else len(file.positions),
                now=file.read_at,
            )
            manifest.place(sql, file.positions)


def _stale(file: Incoming) -> list[int]:
    """The notes that a file had and has no more."""
    return [] if file.is_touched else sorted(file.old - file.positions.keys())
