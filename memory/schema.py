"""The tables of the memory store's database, and how an older version becomes this one.

Notes' text never changes: a note is inserted and deleted, and AUTOINCREMENT never gives an id twice
and gives a later commit a higher one. So whoever holds a copy (a vector index, another process) has
caught up with insertions when it has all ids up to the highest. Deletions, and updates of the
columns that may be updated (expiry, validity), are in the log `changes`, which triggers write.

A new note's words, metadata values and digest belong into random places of large indexes, a page
of the log for each. So `notes_text` has the notes up to `store.worded`, `facts_by_value` and
`digests` those up to `store.sorted`; `fresh.py` enters the newer ones together, in order.
"""

from __future__ import annotations

import sqlite3

SCHEMA_VERSION = 3
TOKENIZER = "porter unicode61 remove_diacritics 2"

# `digest` says who is a duplicate of whom; a superseded note may be told again.
_NOTES = """
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    owner TEXT,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    source TEXT,
    position INTEGER,
    kind TEXT NOT NULL DEFAULT 'episodic'
        CHECK (kind IN ('episodic', 'semantic', 'procedural')),
    created_at REAL NOT NULL,
    expires_at REAL,
    valid_from REAL,
    valid_to REAL,
    superseded_by INTEGER,
    importance REAL NOT NULL DEFAULT 0.5 CHECK (importance BETWEEN 0 AND 1),
    parent INTEGER,
    digest BLOB NOT NULL
) STRICT;
"""

# Indexes that few notes are in cost nothing for the others.
_INDEXES = """
CREATE INDEX notes_by_namespace ON notes (namespace, kind);
CREATE INDEX notes_by_source ON notes (namespace, source, position) WHERE source IS NOT NULL;
CREATE INDEX notes_by_owner ON notes (owner, namespace) WHERE owner IS NOT NULL;
CREATE INDEX notes_by_parent ON notes (parent) WHERE parent IS NOT NULL;
CREATE INDEX notes_by_successor ON notes (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX notes_by_expiry ON notes (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX notes_by_valid_from ON notes (valid_from) WHERE valid_from IS NOT NULL;
CREATE INDEX notes_by_valid_to ON notes (valid_to) WHERE valid_to IS NOT NULL;
"""

# `facts_by_value` is in the order in which filters ask. `digests` has the first 8 bytes of each
# digest: whoever looks there compares the whole. `facts_found` is where a value is looked for.
# What a note superseded is so again when the note is deleted, until what superseded that; but
# nothing is said twice at a time. Only notes with a time since which they are so are superseded.
_NEW_IN_3 = """
CREATE TABLE facts_by_value (
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    note INTEGER NOT NULL,
    PRIMARY KEY (key, value, note)
) STRICT, WITHOUT ROWID;
CREATE TABLE digests (
    start BLOB NOT NULL,
    note INTEGER NOT NULL,
    PRIMARY KEY (start, note)
) STRICT, WITHOUT ROWID;
CREATE VIEW facts_found AS
    SELECT note, key, value FROM facts_by_value
    UNION ALL
    SELECT note, key, value FROM facts WHERE note > (SELECT sorted FROM store);
CREATE INDEX notes_by_digest ON notes (digest) WHERE valid_from IS NOT NULL;
CREATE TRIGGER facts_delete AFTER DELETE ON facts BEGIN
    DELETE FROM facts_by_value WHERE key = old.key AND value = old.value AND note = old.note;
END;
CREATE TRIGGER notes_words_delete AFTER DELETE ON notes
    WHEN old.id <= (SELECT worded FROM store)
BEGIN
    INSERT INTO notes_text (notes_text, rowid, text) VALUES ('delete', old.id, old.text);
END;
CREATE TRIGGER notes_delete AFTER DELETE ON notes BEGIN
    DELETE FROM digests WHERE start = substr(old.digest, 1, 8) AND note = old.id;
    INSERT INTO changes (note, op) VALUES (old.id, 'delete');
    UPDATE notes SET valid_to = old.valid_to, superseded_by = old.superseded_by
        WHERE superseded_by = old.id AND (old.superseded_by IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM notes AS later WHERE later.digest = notes.digest
                AND later.valid_from IS NOT NULL
                AND (later.superseded_by IS NULL
                    OR (later.superseded_by = old.id AND later.id > notes.id))
        ));
END;
CREATE TRIGGER notes_update AFTER UPDATE OF expires_at, valid_from, valid_to ON notes BEGIN
    INSERT INTO changes (note, op) VALUES (old.id, 'update');
END;
"""

# `facts` holds each metadata entry as canonical JSON, which makes equality exact and indexed.
# `edges` holds what semantic notes say: subject, relation and object as they are compared, and in
# `told` as they were written.
# `generation` counts how often all vectors were replaced; `next_model` is whose come next.
_NEW_IN_2 = """
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    note INTEGER NOT NULL,
    op TEXT NOT NULL CHECK (op IN ('delete', 'update'))
) STRICT;
CREATE TABLE edges (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    namespace TEXT NOT NULL,
    subject TEXT NOT NULL,
    relation TEXT NOT NULL,
    object TEXT NOT NULL,
    is_single INTEGER NOT NULL DEFAULT 1,
    told TEXT NOT NULL
) STRICT;
CREATE INDEX edges_by_subject ON edges (namespace, subject, relation);
CREATE INDEX edges_by_object ON edges (namespace, object);
CREATE TABLE usage (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    used_at REAL NOT NULL,
    uses INTEGER NOT NULL
) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL,
    chunks INTEGER NOT NULL,
    ingested_at REAL NOT NULL,
    UNIQUE (namespace, path)
) STRICT;
"""

VECTORS = """
CREATE TABLE vectors (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;
"""

SCHEMA = f"""
CREATE TABLE store (
    store_id TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    embedding_model TEXT,
    next_model TEXT,
    generation INTEGER NOT NULL DEFAULT 0,
    worded INTEGER NOT NULL DEFAULT 0,
    sorted INTEGER NOT NULL DEFAULT 0
) STRICT;
{_NOTES}
{VECTORS}
CREATE TABLE facts (
    note INTEGER NOT NULL REFERENCES notes ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (note, key)
) STRICT, WITHOUT ROWID;
CREATE VIRTUAL TABLE notes_text USING fts5 (
    text, content = 'notes', content_rowid = 'id',
    tokenize = '{TOKENIZER}'
);
{_NEW_IN_2}
{_INDEXES}
{_NEW_IN_3}
"""

_COLUMNS_OF_1 = "id, namespace, text, metadata, source, position, created_at, expires_at, digest"

# The UNIQUE of version 1's digest cannot be dropped, so the table is made anew. Dropping it takes
# its triggers and indexes along, and `sqlite_sequence` must not forget ids that were deleted.
# Source: https://www.sqlite.org/lang_altertable.html section 7.
_FROM_1 = f"""
ALTER TABLE store ADD COLUMN embedding_model TEXT;
ALTER TABLE store ADD COLUMN next_model TEXT;
ALTER TABLE store ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
{_NOTES.replace("TABLE notes", "TABLE notes_2")}
INSERT INTO notes_2 ({_COLUMNS_OF_1}) SELECT {_COLUMNS_OF_1} FROM notes;
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'notes_2', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'notes_2');
UPDATE sqlite_sequence
    SET seq = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'notes'), 0)
    WHERE name = 'notes_2';
DROP TABLE notes;
ALTER TABLE notes_2 RENAME TO notes;
{_NEW_IN_2}
{_INDEXES}
"""

_FROM_2 = f"""
ALTER TABLE store ADD COLUMN worded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE store ADD COLUMN sorted INTEGER NOT NULL DEFAULT 0;
UPDATE store SET worded = last.id, sorted = last.id
    FROM (SELECT coalesce(max(seq), 0) AS id FROM sqlite_sequence WHERE name = 'notes') AS last;
DROP TRIGGER IF EXISTS notes_text_insert;
DROP TRIGGER IF EXISTS notes_delete;
DROP TRIGGER IF EXISTS notes_update;
DROP INDEX IF EXISTS notes_by_digest;
DROP INDEX facts_by_value;
{_NEW_IN_3}
INSERT INTO facts_by_value SELECT key, value, note FROM facts ORDER BY key, value, note;
INSERT INTO digests SELECT substr(digest, 1, 8), id FROM notes ORDER BY 1, 2;
"""

_STEPS = {1: _FROM_1, 2: _FROM_2}


def migrate(connection: sqlite3.Connection) -> bool:
    """Bring an older database to this version in one transaction; whether there was need to.

    Several processes may try at once: one does it, the others see it done.
    """
    if _version(connection) == SCHEMA_VERSION:
        return False
    connection.execute("PRAGMA foreign_keys = OFF")  # has no effect within a transaction
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)
            for step in range(version, SCHEMA_VERSION):
                for statement in statements(_STEPS[step]):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        connection.execute("PRAGMA foreign_keys = ON")
    return version < SCHEMA_VERSION


def statements(script: str) -> list[str]:
    """A script's statements; `executescript` would commit the transaction that it runs in."""
    found: list[str] = []
    rest = ""
    for part in script.split(";"):
        rest += part + ";"
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]
