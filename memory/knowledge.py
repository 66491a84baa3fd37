"""What semantic notes say: facts between entities, their history, and walks along them.

Owns the table `edges`, one row for each note with a fact. A single-valued relation has a history:
each fact holds from its `valid_from` until the next one of its subject and relation begins, whose
note supersedes it. Facts may be told in any order of time; one about the past takes its place in
the past. Nothing is deleted here. Functions run inside their caller's transaction.

A walk loads only what it reaches, step by step, into a networkx graph whose nodes are entities and
whose edges are notes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmos.syscalls.results import Fact, Facts, RelatedFact

if TYPE_CHECKING:
    import networkx as nx

    from llmos.memory.filters import Filter

    Graph = nx.MultiDiGraph[str]


class Edge(NamedTuple):
    """A fact in the graph: its entities as they are compared, and what it is about as told."""

    note: int
    namespace: str
    subject: str
    object: str
    told: tuple[str, str, str]
    text: str
    valid_from: float | None
    valid_to: float | None
    superseded_by: int | None


def entity_key(name: str) -> str:
    """An entity or relation as it is compared: without case, and with single spaces."""
    return " ".join(name.casefold().split())


# --- telling ---


def find_told(
    sql: sqlite3.Connection, namespace: str, fact: Fact, since: float, now: float
) -> int | None:
    """The note that says the same of the time `since`, and has not expired; None without one."""
    found = sql.execute(
        "SELECT edges.note FROM edges JOIN notes ON notes.id = edges.note"
        " WHERE edges.namespace = ? AND edges.subject = ? AND edges.relation = ?"
        " AND edges.object = ? AND notes.valid_from <= ?"
        " AND (notes.valid_to IS NULL OR notes.valid_to > ?)"
        " AND (notes.expires_at IS NULL OR notes.expires_at > ?) ORDER BY edges.note LIMIT 1",
        (namespace, *_keys(fact), since, since, now),
    ).fetchone()
    return None if found is None else found[0]


def tell(sql: sqlite3.Connection, note: int, namespace: str, fact: Fact, since: float) -> list[int]:
    """Enter the fact of a note that was just inserted, in force since `since`.

    Returns the notes that it supersedes: those with another object that held at that time. Where
    a later single-valued fact is known already, the new one ends when that begins.
    """
    subject, relation, _ = keys = _keys(fact)
    ended: list[int] = []
    if fact.is_single:
        ended = [
            row[0]
            for row in sql.execute(
                "SELECT edges.note FROM edges JOIN notes ON notes.id = edges.note"
                " WHERE edges.namespace = ? AND edges.subject = ? AND edges.relation = ?"
                " AND notes.valid_from <= ? AND (notes.valid_to IS NULL OR notes.valid_to > ?)"
                " ORDER BY edges.note",
                (namespace, subject, relation, since, since),
            )
        ]
        next_one = sql.execute(
            "SELECT edges.note, notes.valid_from FROM edges JOIN notes ON notes.id = edges.note"
            " WHERE edges.namespace = ? AND edges.subject = ? AND edges.relation = ?"
            " AND edges.is_single AND notes.valid_from > ?"
            " ORDER BY notes.valid_from, edges.note LIMIT 1",
            (namespace, subject, relation, since),
        ).fetchone()
        _end(sql, ended, since, note)
        if next_one is not None:
            _end(sql, [note], next_one[1], next_one[0])
    sql.execute(
        "INSERT INTO edges (note, namespace, subject, relation, object, is_single, told)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            note,
            namespace,
            *keys,
            int(fact.is_single),
            json.dumps([fact.subject, fact.relation, fact.object]),
        ),
    )
    return ended


def _end(sql: sqlite3.Connection, notes: Sequence[int], at: float, by: int) -> None:
    sql.executemany(
        "UPDATE notes SET valid_to = ?, superseded_by = ? WHERE id = ?",
        [(at, by, note) for note in notes],
    )


def _keys(fact: Fact) -> tuple[str, str, str]:
    return entity_key(fact.subject), entity_key(fact.relation), entity_key(fact.object)


# --- walking ---


def touching(
    sql: sqlite3.Connection, entities: Iterable[str], chosen: Filter, limit: int
) -> list[Edge]:
    """The facts with one of some entities (as compared) at either end, `limit` at most."""
    condition, parameters = chosen.sql()
    names = json.dumps(sorted(entities))
    spaces = json.dumps(list(chosen.namespaces))
    either = " UNION ".join(
        "SELECT note FROM edges WHERE namespace IN (SELECT value FROM json_each(?))"
        f" AND {end} IN (SELECT value FROM json_each(?))"
        for end in ("subject", "object")
    )
    # CROSS JOIN keeps the order: from the few edges to their notes, and not from all notes.
    rows = sql.execute(
        "SELECT edges.note, edges.namespace, edges.subject, edges.object, edges.told, notes.text,"
        f" notes.valid_from, notes.valid_to, notes.superseded_by FROM ({either}) AS near"
        " CROSS JOIN edges ON edges.note = near.note CROSS JOIN notes ON notes.id = near.note"
        f" WHERE {condition} ORDER BY edges.note LIMIT ?",
        (spaces, names, spaces, names, *parameters, limit),
    )
    return [Edge._make((*row[:4], tuple(json.loads(row[4])), *row[5:])) for row in rows]


def walk(
    entity: str, hops: int, limit: int, load: Callable[[Iterable[str], int], list[Edge]]
) -> tuple[list[RelatedFact], bool]:
    """The facts within some steps of an entity, nearest first, and whether there were more.

    `load` gives the facts that touch some entities, up to a number. Direction does not matter:
    "Ann works at Acme" leads from Acme to Ann as well.
    """
    import networkx as nx

    start = entity_key(entity)
    graph: Graph = nx.MultiDiGraph()
    graph.add_node(start)
    reached: set[str] = set()
    for _ in range(hops):
        frontier = set(graph) - reached
        reached |= frontier
        # One more than fits shows that there were more.
        for edge in load(frontier, limit + 1) if frontier else ():
            graph.add_edge(edge.subject, edge.object, key=edge.note, edge=edge)
        if graph.number_of_edges() > limit:
            break
    found = _nearest_first(graph, start)
    return found[:limit], len(found) > limit


def _nearest_first(graph: Graph, start: str) -> list[RelatedFact]:
    import networkx as nx

    steps: dict[str, int] = nx.single_source_shortest_path_length(
        graph.to_undirected(as_view=True), start
    )
    edges: list[Edge] = [edge for _, _, edge in graph.edges(data="edge")]
    found = [
        RelatedFact(
            note=edge.note,
            namespace=edge.namespace,
            subject=edge.told[0],
            relation=edge.told[1],
            object=edge.told[2],
            hops=min(steps[edge.subject], steps[edge.object]) + 1,
            text=edge.text,
            valid_from=edge.valid_from,
            valid_to=edge.valid_to,
            superseded_by=edge.superseded_by,
        )
        for edge in edges
    ]
    return sorted(found, key=lambda fact: (fact.hops, fact.note))


def related(
    sql: sqlite3.Connection, entity: str, chosen: Filter, *, hops: int, limit: int
) -> Facts:
    """The facts within some steps of an entity among the notes that pass a filter."""
    found, is_cut = walk(
        entity, hops, limit, lambda names, most: touching(sql, names, chosen, most)
    )
    return Facts(facts=tuple(found), is_cut=is_cut)
