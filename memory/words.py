"""Searching by words: BM25 over the full-text index and the notes that are not in it yet.

FTS5 ranks what its index holds. The fresh notes (`fresh.py`) are in an index of the same kind in
memory, from which come their matches and counts; their scores are computed here by FTS5's formula
with the statistics of all notes, so that both kinds can stand in one ranking.

Source of the formula: https://www.sqlite.org/fts5.html#the_bm25_function; after Robertson et al.,
"Okapi at TREC-3" (1994).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from llmos.memory.fresh import reached
from llmos.memory.rank import match_any
from llmos.memory.schema import TOKENIZER

if TYPE_CHECKING:
    from llmos.memory.filters import Filter

_K1, _B = 1.2, 0.75
_LEAST_WEIGHT = 1e-6  # of a word that more than half of the notes have
_MARK = "\x01"
_AVERAGES = 1  # the row of FTS5's data that has the number of rows and of words


class Match(NamedTuple):
    """A fresh note that has some words: how often each, and how many words it has in all."""

    note: int
    counts: dict[str, int]
    length: int


class Matches(NamedTuple):
    """What matches, and how many fresh notes and words there are in all."""

    found: Sequence[Match]
    notes: int
    words: int


_NONE = Matches((), 0, 0)


class FreshWords:
    """The words of the notes that the full-text index does not hold yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sql = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._sql.execute(f"CREATE VIRTUAL TABLE fresh USING fts5 (text, tokenize = '{TOKENIZER}')")
        self._sql.execute("CREATE VIRTUAL TABLE words USING fts5vocab (fresh, instance)")
        self._from = self._to = 0  # the ids above the one and up to the other are here

    def close(self) -> None:
        """Close the index; a second call does nothing."""
        with self._lock:
            self._sql.close()

    def matches(self, sql: sqlite3.Connection, terms: Sequence[str]) -> Matches:
        """The fresh notes that have any of some words, deleted ones perhaps among them."""
        now = reached(sql)
        if now.newest == now.worded:
            return _NONE
        with self._lock:
            self._follow(sql, now.worded, now.newest)
            return self._matches(terms)

    def _follow(self, sql: sqlite3.Connection, worded: int, newest: int) -> None:
        if worded != self._from or newest < self._to:
            self._sql.execute("DELETE FROM fresh")
            self._from = self._to = worded
        if newest > self._to:
            self._sql.executemany(
                "INSERT INTO fresh (rowid, text) VALUES (?, ?)",
                sql.execute(
                    "SELECT id, text FROM notes WHERE id > ? AND id <= ?", (self._to, newest)
                ).fetchall(),
            )
            self._to = newest

    def _matches(self, terms: Sequence[str]) -> Matches:
        counts: dict[int, dict[str, int]] = {}
        for term in terms:
            # Each match of the word is marked once.
            for note, marked in self._sql.execute(
                "SELECT rowid, highlight(fresh, 0, ?, '') FROM fresh WHERE fresh MATCH ?",
                (_MARK, match_any([term])),
            ):
                counts.setdefault(note, {})[term] = marked.count(_MARK)
        if not counts:
            return _NONE
        lengths = dict(self._sql.execute("SELECT doc, count(*) FROM words GROUP BY doc"))
        found = [Match(note, having, lengths[note]) for note, having in counts.items()]
        return Matches(found, len(lengths), sum(lengths.values()))


def search(
    sql: sqlite3.Connection, fresh: FreshWords, terms: Sequence[str], chosen: Filter, k: int
) -> list[tuple[int, float]]:
    """The k best of the notes that pass a filter and have any of some words, as (id, BM25)."""
    # The fresh ones first: what another writer enters meanwhile is then found twice, not missed.
    newer = _ranked(sql, fresh.matches(sql, terms), chosen)
    condition, parameters = chosen.sql()
    # FTS5 gives a better match a smaller (negative) number.
    older: list[tuple[int, float]] = sql.execute(
        "SELECT notes.id, -bm25(notes_text) AS score FROM notes_text"
        " JOIN notes ON notes.id = notes_text.rowid"
        f" WHERE notes_text MATCH ? AND {condition} ORDER BY score DESC, notes.id LIMIT ?",
        (match_any(terms), *parameters, k),
    ).fetchall()
    if not newer:
        return older
    together = {**newer, **dict(older)}
    return sorted(together.items(), key=lambda one: (-one[1], one[0]))[:k]


def _ranked(sql: sqlite3.Connection, matches: Matches, chosen: Filter) -> dict[int, float]:
    """The scores of those of some fresh matches that pass a filter."""
    found = matches.found
    if not found:
        return {}
    condition, parameters = chosen.sql(by_note=True)
    among = ", ".join("?" * len(found))
    passing = {
        note
        for (note,) in sql.execute(
            f"SELECT notes.id FROM notes NOT INDEXED WHERE notes.id IN ({among}) AND {condition}",
            (*(one.note for one in found), *parameters),
        )
    }
    notes, words = _totals(sql)
    notes += matches.notes
    words += matches.words
    weights = {
        term: _weight(notes, count_with(sql, term) + sum(term in one.counts for one in found))
        for term in {term for one in found for term in one.counts}
    }
    return {one.note: _score(one, weights, words / notes) for one in found if one.note in passing}


def _weight(notes: int, having: int) -> float:
    weight = math.log((notes - having + 0.5) / (having + 0.5)) if having < notes else 0.0
    return weight if weight > 0 else _LEAST_WEIGHT


def _score(one: Match, weights: dict[str, float], average: float) -> float:
    norm = _K1 * (1 - _B + _B * one.length / average)
    return sum(
        weights[term] * count * (_K1 + 1) / (count + norm) for term, count in one.counts.items()
    )


def count_with(sql: sqlite3.Connection, term: str) -> int:
    """How many notes in the full-text index have a word, deleted ones left out.

    Takes a twenty-fifth of the time of ranking them by BM25.
    """
    return sql.execute(
        "SELECT count(*) FROM notes_text WHERE notes_text MATCH ?", (match_any([term]),)
    ).fetchone()[0]


def rarest(sql: sqlite3.Connection, terms: Sequence[str], most: int) -> list[str]:
    """The rarest of some words that match `most` notes together, at least one that matches any."""
    (newest,) = sql.execute("SELECT max(id) FROM notes").fetchone()
    if len(terms) <= 1 or (newest or 0) <= most:
        return list(terms)
    found: list[str] = []
    total = 0
    for count, term in sorted((count_with(sql, term), term) for term in terms):
        if total and total + count > most:
            break
        total += count
        found.append(term)
    return found


def _totals(sql: sqlite3.Connection) -> tuple[int, int]:
    """How many notes the full-text index holds, and how many words these have.

    FTS5 keeps both, as two of SQLite's variable-length integers, in the first row of its data.
    Source: the comment "AVERAGES RECORD" of SQLite's ext/fts5/fts5_index.c.
    """
    found = sql.execute("SELECT block FROM notes_text_data WHERE id = ?", (_AVERAGES,)).fetchone()
    numbers = _integers(found[0]) if found else []
    notes, words = (*numbers, 0, 0)[:2]
    return notes, words


def _integers(block: bytes) -> list[int]:
    """SQLite's variable-length integers, of seven bits a byte, the highest first.

    Source: https://www.sqlite.org/fileformat2.html section 1.6. The ninth byte of one, which has
    eight bits, does not come up below 2**56.
    """
    found: list[int] = []
    value = 0
    for byte in block:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            found.append(value)
            value = 0
    return found
