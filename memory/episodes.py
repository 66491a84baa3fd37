"""The episode store: what agents asked models and got, kept with consent, and how it was judged.

Owns one SQLite file with three things: every grant and withdrawal of consent, the episodes (one for
each answered `Generate`), and their outcomes. An episode is only stored while its namespace's last
word is a grant, which is looked up in the transaction that stores it; a withdrawal deletes the
namespace's episodes in the transaction that records it, and SQLite overwrites them with zeros. What
was written to files of rows before is beyond its reach, as are models trained on them.

Refuses to know processes (`kernel/trace_data.py`) and rows (`trace_rows.py`). Safe for several
threads and processes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from llmos.memory.damage import storage_errors
from llmos.syscalls.content import Message
from llmos.syscalls.results import ToolSpec

FILE = "episodes.sqlite"
MOST_EPISODES = 100_000  # about a gigabyte of conversations of a thousand tokens
# Another process may hold the database for one short transaction, never longer.
_BUSY_TIMEOUT_S = 5.0

# The last line of consents about a namespace is in force. `lineage` has the pids from the first
# process below init to the episode's own, each between slashes: "/3/7/".
_SCHEMA = """
CREATE TABLE IF NOT EXISTS consents (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    is_granted INTEGER NOT NULL,
    at REAL NOT NULL,
    granted_by TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS consents_by_namespace ON consents (namespace, id);
CREATE TABLE IF NOT EXISTS episodes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    lineage TEXT NOT NULL,
    program TEXT NOT NULL,
    task TEXT NOT NULL,
    model TEXT NOT NULL,
    adapter TEXT,
    at REAL NOT NULL,
    messages TEXT NOT NULL,
    tools TEXT NOT NULL,
    answer TEXT NOT NULL,
    finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL,
    reward REAL,
    verdict TEXT,
    thumb TEXT,
    note TEXT,
    judged_by TEXT,
    judged_at REAL,
    score REAL GENERATED ALWAYS AS (COALESCE(
        reward,
        CASE verdict WHEN 'pass' THEN 1.0 WHEN 'fail' THEN 0.0 END,
        CASE thumb WHEN 'up' THEN 1.0 WHEN 'down' THEN 0.0 END
    )) VIRTUAL
) STRICT;
CREATE INDEX IF NOT EXISTS episodes_by_namespace ON episodes (namespace, id);
CREATE INDEX IF NOT EXISTS episodes_by_process ON episodes (boot, pid);
"""
_STORED = (
    "namespace, boot, pid, lineage, program, task, model, adapter, at, messages, tools, answer, "
    "finish, prompt_tokens, answer_tokens"
)
_CONSENTED = (
    "SELECT is_granted FROM consents WHERE namespace = ? ORDER BY id DESC LIMIT 1"  # None: never
)
_MESSAGES = TypeAdapter(tuple[Message, ...])
_TOOLS = TypeAdapter(tuple[ToolSpec, ...])


@dataclass(frozen=True, slots=True)
class Happened:
    """An answered generation, as it is to be stored."""

    namespace: str
    boot: str
    pid: int
    lineage: tuple[int, ...]  # from the first process below init to the process itself
    program: str
    task: str  # what the agent was to do: attempts at the same thing have the same
    model: str
    adapter: str | None
    at: float
    messages: Sequence[Message]  # what the model read
    tools: Sequence[ToolSpec]
    answer: Message
    finish: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Episode:
    """A stored episode. `score` is its reward, or else 1 or 0 by its verdict, or else its thumb."""

    id: int
    namespace: str
    program: str
    task: str
    model: str
    adapter: str | None
    at: float
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    answer: Message
    finish: str
    score: float | None


class Whose(NamedTuple):
    """An episode's place: who may judge it depends on it."""

    id: int
    namespace: str
    boot: str
    lineage: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How an episode turned out, in the words of whoever judged; None leaves what was said."""

    by: str
    at: float
    reward: float | None = None
    verdict: str | None = None
    thumb: str | None = None
    task: str | None = None
    note: str | None = None


class EpisodeStore:
    """The episodes of one folder; made when first opened."""

    def __init__(self, folder: Path, *, most: int = MOST_EPISODES) -> None:
        """Open or make the store; of more than `most` episodes the oldest go.

        Raises: SyscallError("storage").
        """
        self._path = folder / FILE
        self._most = most
        self._lock = threading.Lock()
        with storage_errors(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._sql = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._path.chmod(0o600)  # conversations are their owner's alone
            self._sql.execute("PRAGMA journal_mode = WAL")
            # An outcome or a consent that was acknowledged survives a power cut.
            self._sql.execute("PRAGMA synchronous = FULL")
            self._sql.execute("PRAGMA secure_delete = ON")
            self._sql.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database; the store cannot be used after."""
        with self._lock:
            self._sql.close()

    def consent(self, namespace: str, *, is_granted: bool, by: str, at: float) -> int:
        """Record a consent or its withdrawal, which deletes; how many episodes were deleted."""
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO consents (namespace, is_granted, at, granted_by) VALUES (?, ?, ?, ?)",
                (namespace, is_granted, at, by),
            )
            if is_granted:
                return 0
            deleted = sql.execute("DELETE FROM episodes WHERE namespace = ?", (namespace,)).rowcount
        if deleted:  # the log still has the pages as they were
            with self._lock, storage_errors(self._path):
                self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return deleted

    def consents(self) -> dict[str, bool]:
        """Every namespace that was ever spoken of, and whether its last word is a grant."""
        with self._lock, storage_errors(self._path):
            rows = self._sql.execute("SELECT namespace, is_granted FROM consents ORDER BY id")
            return {namespace: bool(is_granted) for namespace, is_granted in rows}

    def add(self, episodes: Sequence[Happened]) -> int:
        """Store those episodes whose namespace consents now; how many."""
        rows = [_row(one) for one in episodes]
        marks = ", ".join("?" * len(_STORED.split(",")))
        with self._transaction() as sql:
            names = {one.namespace for one in episodes}
            granted = {
                name for name in names if (sql.execute(_CONSENTED, (name,)).fetchone() or (0,))[0]
            }
            kept = [row for row in rows if row[0] in granted]
            sql.executemany(f"INSERT INTO episodes ({_STORED}) VALUES ({marks})", kept)
            sql.execute(
                "DELETE FROM episodes WHERE id <= "
                "(SELECT id FROM episodes ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (self._most,),
            )
        return len(kept)

    def of_process(self, boot: str, pid: int) -> list[Whose]:
        """The episodes of a process and of all that descend from it."""
        return self._whose("boot = ? AND lineage LIKE ?", boot, f"%/{pid}/%")

    def of_id(self, episode: int) -> list[Whose]:
        """One episode by its id; none if there is none."""
        return self._whose("id = ?", episode)

    def judge(self, episodes: Sequence[int], judgement: Judgement) -> None:
        """Record how episodes turned out; a later judgement replaces what it says anew."""
        given = (
            judgement.reward,
            judgement.verdict,
            judgement.thumb,
            judgement.task,
            judgement.note,
            judgement.by,
            judgement.at,
        )
        with self._transaction() as sql:
            sql.executemany(
                "UPDATE episodes SET reward = COALESCE(?, reward), verdict = COALESCE(?, verdict), "
                "thumb = COALESCE(?, thumb), task = COALESCE(?, task), note = COALESCE(?, note), "
                "judged_by = ?, judged_at = ? WHERE id = ?",
                [(*given, episode) for episode in episodes],
            )

    def find(
        self,
        namespaces: Sequence[str],
        *,
        min_score: float | None = None,
        is_judged: bool = False,
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Episode]:
        """Episodes of namespaces, oldest first; with a limit, the newest that fit.

        `min_score` leaves out those that were not judged, as `is_judged` does.
        """
        conditions = [f"namespace IN ({', '.join('?' * len(namespaces))})"]
        values: list[Any] = [*namespaces]
        if min_score is not None:
            conditions.append("score >= ?")
            values.append(min_score)
        if is_judged:
            conditions.append("score IS NOT NULL")
        if since is not None:
            conditions.append("at >= ?")
            values.append(since)
        query = (
            "SELECT id, namespace, program, task, model, adapter, at, messages, tools, answer, "
            f"finish, score FROM episodes WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"
        )
        with self._lock, storage_errors(self._path):
            rows = self._sql.execute(query, (*values, -1 if limit is None else limit)).fetchall()
        return [_episode(row) for row in reversed(rows)]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Episodes of each namespace that has some: how many, and how many were judged."""
        with self._lock, storage_errors(self._path):
            rows = self._sql.execute(
                "SELECT namespace, COUNT(*), COUNT(score) FROM episodes GROUP BY namespace"
            )
            return {namespace: (stored, judged) for namespace, stored, judged in rows}

    def _whose(self, condition: str, *values: Any) -> list[Whose]:
        with self._lock, storage_errors(self._path):
            rows = self._sql.execute(
                f"SELECT id, namespace, boot, lineage FROM episodes WHERE {condition} ORDER BY id",
                values,
            ).fetchall()
        return [
            Whose(id, namespace, boot, tuple(int(pid) for pid in lineage.strip("/").split("/")))
            for id, namespace, boot, lineage in rows
        ]

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """Everything in the block or nothing; durable once the block is left."""
        with self._lock, storage_errors(self._path):
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._sql.execute("ROLLBACK")
                raise


def _row(one: Happened) -> tuple[Any, ...]:
    lineage = "".join(f"/{pid}" for pid in one.lineage) + "/"
    return (
        one.namespace,
        one.boot,
        one.pid,
        lineage,
        one.program,
        one.task,
        one.model,
        one.adapter,
        one.at,
        _MESSAGES.dump_json(tuple(one.messages)).decode(),
        json.dumps([tool.model_dump() for tool in one.tools]),
        one.answer.model_dump_json(),
        one.finish,
        one.prompt_tokens,
        one.answer_tokens,
    )


def _episode(row: Sequence[Any]) -> Episode:
    id, namespace, program, task, model, adapter, at, messages, tools, answer, finish, score = row
    return Episode(
        id=id,
        namespace=namespace,
        program=program,
        task=task,
        model=model,
        adapter=adapter,
        at=at,
        messages=_MESSAGES.validate_json(messages),
        tools=_TOOLS.validate_json(tools),
        answer=Message.model_validate_json(answer),
        finish=finish,
        score=score,
    )
