-- A memory store as version 2 left it: its schema, and some notes with and without facts.
CREATE TABLE store (
    store_id TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    embedding_model TEXT,
    next_model TEXT,
    generation INTEGER NOT NULL DEFAULT 0
) STRICT;
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
CREATE TABLE vectors (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;
CREATE TABLE facts (
    note INTEGER NOT NULL REFERENCES notes ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (note, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX facts_by_value ON facts (key, value, note);
CREATE VIRTUAL TABLE notes_text USING fts5 (
    text, content = 'notes', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
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
CREATE UNIQUE INDEX notes_by_digest ON notes (digest) WHERE superseded_by IS NULL;
CREATE INDEX notes_by_namespace ON notes (namespace, kind);
CREATE INDEX notes_by_source ON notes (namespace, source, position) WHERE source IS NOT NULL;
CREATE INDEX notes_by_owner ON notes (owner, namespace) WHERE owner IS NOT NULL;
CREATE INDEX notes_by_parent ON notes (parent) WHERE parent IS NOT NULL;
CREATE INDEX notes_by_successor ON notes (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX notes_by_expiry ON notes (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX notes_by_valid_from ON notes (valid_from) WHERE valid_from IS NOT NULL;
CREATE INDEX notes_by_valid_to ON notes (valid_to) WHERE valid_to IS NOT NULL;
CREATE TRIGGER notes_text_insert AFTER INSERT ON notes BEGIN
    INSERT INTO notes_text (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER notes_delete AFTER DELETE ON notes BEGIN
    INSERT INTO notes_text (notes_text, rowid, text) VALUES ('delete', old.id, old.text);
    INSERT INTO changes (note, op) VALUES (old.id, 'delete');
    UPDATE notes SET valid_to = old.valid_to, superseded_by = old.superseded_by
        WHERE superseded_by = old.id AND (old.superseded_by IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM notes AS later WHERE later.digest = notes.digest
                AND (later.superseded_by IS NULL
                    OR (later.superseded_by = old.id AND later.id > notes.id))
        ));
END;
CREATE TRIGGER notes_update AFTER UPDATE OF expires_at, valid_from, valid_to ON notes BEGIN
    INSERT INTO changes (note, op) VALUES (old.id, 'update');
END;
INSERT INTO store (store_id, dimensions) VALUES ('old', 4);
INSERT INTO notes (id, namespace, text, metadata, source, position, created_at, digest) VALUES
    (1, 'a', 'The pump leaks', '{"n":1}', 'log', 3, 1000.0, x'a5'),
    (2, 'b', 'The valve holds', '{}', NULL, NULL, 1001.0, x'02'),
    (3, 'b', 'deleted', '{"n":1}', NULL, NULL, 1001.0, x'03');
INSERT INTO notes (id, namespace, text, metadata, kind, created_at, valid_from, valid_to,
    superseded_by, digest) VALUES
    (4, 'a', 'Ann lives in Oslo.', '{}', 'semantic', 1002.0, 1002.0, 1003.0, 5, x'04'),
    (5, 'a', 'Ann lives in Rome.', '{}', 'semantic', 1003.0, 1003.0, NULL, NULL, x'05');
INSERT INTO edges (note, namespace, subject, relation, object, told) VALUES
    (4, 'a', 'ann', 'lives in', 'oslo', '["Ann", "lives in", "Oslo"]'),
    (5, 'a', 'ann', 'lives in', 'rome', '["Ann", "lives in", "Rome"]');
INSERT INTO facts VALUES (1, '"n"', '1'), (3, '"n"', '1');
DELETE FROM notes WHERE id = 3;
