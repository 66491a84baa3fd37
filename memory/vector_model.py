"""Which model made the store's vectors, as the store remembers it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from llmos.memory.folder import DATABASE_FILE
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import Value


class VectorModel(Value):
    """An embedding model: models of one `identity` make the same vectors of the same documents.

    `source` is where it can be found again, with the prefixes that were set by hand.
    """

    identity: str
    source: str
    query_prefix: str | None = None
    document_prefix: str | None = None

    @property
    def text(self) -> str:
        """This model as the store keeps it."""
        return self.model_dump_json()


class Made(NamedTuple):
    """What a store's vectors are: how wide, and whose, where that is known."""

    dimensions: int
    model: VectorModel | None


def parse_model(text: str | None) -> VectorModel | None:
    """The model that a store's text names; None for no text, or one of another program."""
    if text is None:
        return None
    try:
        return VectorModel.model_validate_json(text)
    except ValidationError:
        return None


def made_with(folder: Path) -> Made | None:
    """What the store in a folder was made with; None when there is none that can be read.

    Reads only. What is wrong with a database is said by who opens the store.
    """
    path = folder / DATABASE_FILE
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as sql:
            columns = [row[1] for row in sql.execute("PRAGMA table_info(store)")]
            named = "embedding_model" if "embedding_model" in columns else "NULL"
            row = sql.execute(f"SELECT dimensions, {named} FROM store").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else Made(row[0], parse_model(row[1]))


def model_text(sql: sqlite3.Connection) -> str | None:
    """The text of the model whose vectors the store holds now; None where it is not known."""
    return sql.execute("SELECT embedding_model FROM store").fetchone()[0]


def check_model(sql: sqlite3.Connection, text: str | None) -> None:
    """Refuse vectors that were made before the store's vectors became another model's.

    A store never goes back to an earlier model's vectors, so what holds after a search held during
    it. None is not checked. Raises: SyscallError("busy"), which a vector of the new model mends.
    """
    if text is not None and model_text(sql) != text:
        raise SyscallError(
            "busy",
            "the store's embedding model was changed a moment ago; embed again",
            is_retryable=True,
        )
