"""One run over files and folders: what is new or changed is parsed, cut and taken into the store.

A file's chunks are notes with its path as `source`, their order as `position`, and where they stand
as metadata: `format`, `section`, and `line`, `page`, `row` or `paragraph`. They are of the greatest
importance, since their files, not their use, say how long they last.

Refuses to know devices and who may read what. Blocks; a run belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from llmos.memory.ingest.chunks import Count, chunks
from llmos.memory.ingest.decoding import looks_binary
from llmos.memory.ingest.document import FileRefused
from llmos.memory.ingest.intake import Embed, Intake
from llmos.memory.ingest.manifest import Known
from llmos.memory.ingest.parsers import PACKED, format_of, parse
from llmos.memory.ingest.walk import Found, Refused, unreadable, walk
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.results import FileProblem, Ingested
from llmos.syscalls.values import JsonObject

CHUNK_TOKENS = 200
MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_PROBLEMS_LISTED = 1000
_SNIFFED_BYTES = 8192
# Raise it when parsers or cutting change what comes of a file, so that files are read again.
_RECIPE_VERSION = 1
_DIGEST_BYTES = 16
# A file that changed so shortly before it was read may have changed again in the same instant.
_UNSETTLED_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How files become notes. Another recipe makes every file count as changed."""

    chunk_tokens: int = CHUNK_TOKENS
    encoding: str | None = None
    max_file_bytes: int = MAX_FILE_BYTES

    def digest(self, data: bytes) -> bytes:
        """What a file's content and this recipe come to."""
        return blake2b(data, digest_size=_DIGEST_BYTES).digest() + self._mark()

    def made(self, digest: bytes) -> bool:
        """Whether a file with this digest was taken in by this recipe."""
        return digest[_DIGEST_BYTES:] == self._mark()

    def _mark(self) -> bytes:
        recipe = f"{_RECIPE_VERSION} {self.chunk_tokens} {self.encoding}"
        return blake2b(recipe.encode(), digest_size=8).digest()


class Progress(NamedTuple):
    """How far a run is: files looked at, the one at hand, notes stored so far."""

    files: int
    path: str
    notes: int


@dataclass(slots=True)
class _Tally:
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    refused: int = 0
    gone: int = 0
    bytes: int = 0


class Ingestion:
    """A run into one namespace of a store.

    `embed` gives a unit vector a text, `count` the tokens of a text. `is_cancelled` is asked before
    each file: when it says yes, the run ends with what is done so far.
    """

    def __init__(
        self,
        store: Store,
        namespace: str,
        *,
        embed: Embed,
        count: Count,
        recipe: Recipe | None = None,
        owner: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._namespace = namespace
        self._intake = Intake(store, namespace, embed, owner=owner)
        self._count = count
        self._recipe = recipe or Recipe()
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._tally = _Tally()
        self._problems: list[FileProblem] = []

    def run(self, paths: Sequence[Path], *, forgets_gone: bool = False) -> Ingested:
        """Take in files and folders; `forgets_gone` forgets files below them that are not there.

        A file that cannot be taken in is a problem in the result, and the run goes on.
        Raises: SyscallError when the store or the embedding refuses.
        """
        looked_at = 0
        for path in paths:
            for found in walk(path):
                if self._is_cancelled():
                    break
                looked_at += 1
                if self._on_progress is not None:
                    so_far = self._intake.stored.notes
                    self._on_progress(Progress(looked_at, str(found.path), so_far))
                self._look_at(found)
        self._intake.flush()
        if forgets_gone:
            for path in paths:
                self._forget_gone(path)
        return self._result()

    def _look_at(self, found: Found | Refused) -> None:
        try:
            if isinstance(found, Refused):
                raise found.refusal
            self._take(found)
        except FileRefused as refusal:
            self._tally.refused += 1
            if len(self._problems) < MAX_PROBLEMS_LISTED:
                self._problems.append(
                    FileProblem(
                        path=str(found.path), problem=refusal.problem, message=refusal.message
                    )
                )

    def _take(self, found: Found) -> None:
        known = self._intake.known(found)
        if known is not None and self._is_settled(found, known):
            self._tally.unchanged += 1
            return
        data = self._read(found)
        digest = self._recipe.digest(data)
        if known is not None and known.is_whole and known.digest == digest:
            self._tally.unchanged += 1
            self._intake.touch(found, digest)
            return
        file = self._intake.begin(found, digest, is_known=known is not None)
        try:
            for note in self._notes(found.path, data):
                self._intake.add(file, note)
        except FileRefused:
            self._intake.abandon(file)
            raise
        self._intake.complete(file)
        self._tally.bytes += len(data)
        if known is None:
            self._tally.new += 1
        else:
            self._tally.changed += 1

    def _is_settled(self, found: Found, known: Known) -> bool:
        """Whether size and time alone tell that a file is as it was."""
        return (
            known.is_whole
            and known.size_bytes == found.size_bytes
            and known.mtime_ns == found.mtime_ns
            and known.ingested_at - found.mtime_ns / 1e9 > _UNSETTLED_S
            and self._recipe.made(known.digest)
        )

    def _read(self, found: Found) -> bytes:
        """A file's bytes. Raises: FileRefused, for a binary file after its first bytes."""
        if found.size_bytes == 0:
            raise FileRefused("empty", "it holds nothing")
        most = self._recipe.max_file_bytes
        if found.size_bytes > most:
            raise FileRefused(
                "too_large",
                f"{found.size_bytes} bytes are more than {most}; split it, or allow larger files",
            )
        try:
            with found.path.open("rb") as file:
                head = file.read(_SNIFFED_BYTES)
                if format_of(found.path.name) not in PACKED and looks_binary(head):
                    raise FileRefused("binary", "it holds no text; leave it out")
                return head + file.read(most)
        except OSError as problem:
            raise unreadable(problem) from problem

    def _notes(self, path: Path, data: bytes) -> Iterator[Note]:
        document = parse(path.name, data, encoding=self._recipe.encoding)
        cut = chunks(
            document.parts,
            count=self._count,
            tokens=self._recipe.chunk_tokens,
            counts_lines=document.unit == "line",
        )
        for position, chunk in enumerate(cut):
            where: JsonObject = {"format": document.format, document.unit: chunk.place}
            if chunk.section:
                where["section"] = chunk.section
            yield Note(
                text=chunk.text,
                metadata=where,
                source=str(path),
                position=position,
                importance=1.0,
            )

    def _forget_gone(self, path: Path) -> None:
        after = ""
        while known := self._intake.below(str(path), after):
            after = known[-1]
            for one in known:
                if not Path(one).exists():
                    self._intake.forget(one)
                    self._tally.gone += 1

    def _result(self) -> Ingested:
        stored, tally = self._intake.stored, self._tally
        return Ingested(
            namespace=self._namespace,
            new=tally.new,
            changed=tally.changed,
            unchanged=tally.unchanged,
            refused=tally.refused,
            gone=tally.gone,
            notes=stored.notes,
            reused=stored.reused,
            forgotten=stored.forgotten,
            bytes=tally.bytes,
            problems=tuple(self._problems),
        )
