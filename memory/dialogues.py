"""What people said in conversations that left a window, and how far it has been read.

Consolidation reads the store's dialogue in the order of its notes' ids, which never come twice, so
one number says how far it is. It is kept in a file of its own: where it is lost, dialogue is read
again, and what was learned from it already is found to be there.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import NamedTuple

from llmos.memory.folder import replace_durably
from llmos.syscalls.errors import SyscallError

MARK_FILE = "consolidated.json"


class Said(NamedTuple):
    """One note of a dialogue, by the user, when it was remembered, and on whose behalf."""

    id: int
    namespace: str
    text: str
    at: float
    owner: str | None = None


def said_after(sql: sqlite3.Connection, mark: int, *, now: float, limit: int) -> list[Said]:
    """What users said in notes after `mark`, oldest first.

    Not what is in processes' own namespaces, which nobody reads once the process is gone.
    """
    rows = sql.execute(
        "SELECT notes.id, notes.namespace, notes.text, notes.created_at, notes.owner"
        " FROM facts_found AS facts JOIN notes ON notes.id = facts.note"
        " WHERE facts.key = '\"role\"' AND facts.value = '\"user\"' AND facts.note > ?"
        " AND notes.kind = 'episodic' AND notes.namespace NOT LIKE 'process-%'"
        " AND (notes.expires_at IS NULL OR notes.expires_at > ?)"
        " ORDER BY facts.note LIMIT ?",
        (mark, now, limit),
    )
    return [Said(*row) for row in rows]


def read_mark(folder: Path) -> int:
    """The id of the last note that was read; 0 where nothing is known.

    Raises: SyscallError("storage") when the file cannot be read.
    """
    path = folder / MARK_FILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return 0
    except OSError as problem:
        raise _storage(path, problem) from problem
    except ValueError:  # damaged: what was read is read again
        return 0
    return found if isinstance(found, int) else 0


def write_mark(folder: Path, mark: int) -> None:
    """Keep how far dialogue was read. Raises: SyscallError("storage")."""
    path = folder / MARK_FILE
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(mark))
        replace_durably(new, path)
    except OSError as problem:
        raise _storage(path, problem) from problem


def _storage(path: Path, problem: OSError) -> SyscallError:
    return SyscallError(
        "storage",
        f"{path} cannot be used: {problem.strerror or problem}; free space there and check its "
        "permissions",
        path=str(path),
    )
