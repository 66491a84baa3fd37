"""Conditions on metadata, against a plain reading of what they mean."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmos.memory.conditions import (
    OPERATORS,
    Condition,
    canonical,
    parse,
    refuse_unknown,
    stored,
)
from llmos.syscalls.errors import SyscallError

TABLES = """
CREATE TABLE notes (id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE facts (note INTEGER, key TEXT, value TEXT, PRIMARY KEY (note, key)) WITHOUT ROWID;
CREATE VIEW facts_found AS SELECT * FROM facts;
"""


def _database(items: Sequence[dict[str, Any]], namespace: str = "n") -> sqlite3.Connection:
    sql = sqlite3.connect(":memory:")
    sql.executescript(TABLES)
    for note, metadata in enumerate(items):
        sql.execute(
            "INSERT INTO notes VALUES (?, ?, ?)",
            (note, namespace, canonical(metadata, field="metadata")),
        )
        for key, value in metadata.items():
            sql.execute(
                "INSERT INTO facts VALUES (?, ?, ?)",
                (note, json.dumps(key), stored(value, field="metadata")),
            )
    return sql


def _found(items: Sequence[dict[str, Any]], where: dict[str, Any]) -> list[int]:
    """Who passes, which both forms of the conditions agree on."""
    sql = _database(items)
    try:
        once, by_note = (_passing(sql, where, by_note=by_note) for by_note in (False, True))
        assert once == by_note
        return once
    finally:
        sql.close()


def _passing(sql: sqlite3.Connection, where: dict[str, Any], *, by_note: bool) -> list[int]:
    clauses, parameters = ["1"], []
    for condition in parse(where):
        clause, values = condition.sql(by_note=by_note)
        clauses.append(clause)
        parameters += values
    rows = sql.execute(
        f"SELECT id FROM notes WHERE {' AND '.join(clauses)} ORDER BY id", parameters
    )
    return [row[0] for row in rows]


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def _is_equal(one: Any, other: Any) -> bool:
    return canonical(one, field="x") == canonical(other, field="x")


def _holds(condition: Condition, metadata: dict[str, Any]) -> bool:
    """The meaning of a condition, as the module's description has it."""
    field, operator, wanted = condition
    if operator == "$exists":
        return (field in metadata) == wanted
    if operator == "$ne":
        return field not in metadata or not _is_equal(metadata[field], wanted)
    if field not in metadata:
        return False
    value = metadata[field]
    match operator:
        case "$eq":
            return _is_equal(value, wanted)
        case "$in":
            return any(_is_equal(value, one) for one in wanted)
        case "$contains":
            if isinstance(value, list):
                return any(_is_equal(one, wanted) for one in value)
            return isinstance(value, str) and isinstance(wanted, str) and wanted in value
        case _:
            if _kind(value) != _kind(wanted) or _kind(value) not in ("number", "str"):
                return False
            return {
                "$gt": value > wanted,
                "$gte": value >= wanted,
                "$lt": value < wanted,
                "$lte": value <= wanted,
            }[operator]


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
_NUMBER = st.integers(-(10**12), 10**12) | st.floats(-1e6, 1e6, allow_nan=False)
_SCALAR = st.none() | st.booleans() | _NUMBER | _TEXT | st.sampled_from(["a" * 250, "a" * 251])
_VALUE = _SCALAR | st.lists(_SCALAR, max_size=3) | st.dictionaries(_TEXT, _SCALAR, max_size=2)
_FIELD = st.sampled_from(["a", "b", 'q"', "é"])


@st.composite
def _a_condition(draw: st.DrawFn) -> Condition:
    operator = draw(st.sampled_from(OPERATORS))
    operands: dict[str, st.SearchStrategy[Any]] = {
        "$exists": st.booleans(),
        "$in": st.lists(_VALUE, min_size=1, max_size=3),
        "$contains": _SCALAR,
        "$eq": _VALUE,
        "$ne": _VALUE,
    }
    return Condition(draw(_FIELD), operator, draw(operands.get(operator, _NUMBER | _TEXT)))


@settings(max_examples=300, deadline=None)
@example(items=[{"a": "0"}], conditions=[Condition("a", "$gt", "")])
@example(items=[{"a": [None]}, {"a": "b"}], conditions=[Condition("a", "$contains", None)])
@given(
    items=st.lists(st.dictionaries(_FIELD, _VALUE, max_size=3), max_size=8),
    conditions=st.lists(_a_condition(), min_size=1, max_size=2, unique_by=lambda one: one.field),
)
def test_exactly_the_notes_for_which_all_conditions_hold_are_found(
    items: list[dict[str, Any]], conditions: list[Condition]
) -> None:
    where = {one.field: {one.operator: one.value} for one in conditions}
    wanted = [
        note for note, item in enumerate(items) if all(_holds(one, item) for one in conditions)
    ]
    assert _found(items, where) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(_FIELD, _VALUE, max_size=2), max_size=6), _FIELD, _SCALAR)
def test_a_plain_value_means_that_it_is_equal(
    items: list[dict[str, Any]], field: str, value: Any
) -> None:
    assert _found(items, {field: value}) == _found(items, {field: {"$eq": value}})


def test_an_object_without_operators_is_a_value() -> None:
    assert _found([{"a": {"b": 1}}, {"a": {"b": 2}}], {"a": {"b": 1.0}}) == [0]


def test_several_operators_on_a_field_must_all_hold() -> None:
    items = [{"year": year} for year in (2018, 2020, 2022.5, 2024)]
    assert _found(items, {"year": {"$gte": 2020, "$lt": 2024}}) == [1, 2]


def test_whole_numbers_beyond_a_double_are_told_apart() -> None:
    items = [{"n": 2**53}, {"n": 2**53 + 1}]
    assert _found(items, {"n": {"$gt": 2**53}}) == [1]


def test_numbers_and_texts_longer_than_a_stored_value_are_compared() -> None:
    items = [{"a": 10**250}, {"a": 5}, {"a": "b" * 300}, {"a": ["x" * 300, 7]}]
    assert _found(items, {"a": {"$gt": 10**18}}) == [0]
    assert _found(items, {"a": {"$gte": "b"}}) == [2]
    assert _found(items, {"a": {"$contains": 7}}) == [3]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"a": {"$near": 1}}, "no operator"),
        ({"a": {"$gt": True}}, "number or a text"),
        ({"a": {"$in": []}}, "at least one"),
        ({"a": {"$exists": 1}}, "true or false"),
        ({"a": {"$contains": [1]}}, "takes a text"),
        ({"a": {"$gt": 1, "b": 2}}, "no operator"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_is(where: dict[str, Any], told: str) -> None:
    with pytest.raises(SyscallError, match=told) as refused:
        parse(where)
    assert refused.value.fields["field"] == "where.a"


@pytest.fixture
def papers() -> Iterator[sqlite3.Connection]:
    sql = _database([{"year": 2020, "author": "Ann"}], namespace="papers")
    yield sql
    sql.close()


def test_a_field_that_nobody_has_is_refused_with_the_nearest(papers: sqlite3.Connection) -> None:
    with pytest.raises(SyscallError, match="did you mean 'author'") as refused:
        refuse_unknown(papers, parse({"auther": "Ann"}), ["papers"])
    assert refused.value.code == "invalid"


def test_a_field_like_no_other_is_refused_with_those_there_are(papers: sqlite3.Connection) -> None:
    with pytest.raises(SyscallError, match="they have 'author', 'year'"):
        refuse_unknown(papers, parse({"zzz": 1}), ["papers"])


def test_fields_of_other_namespaces_are_neither_known_nor_told(papers: sqlite3.Connection) -> None:
    refuse_unknown(papers, parse({"year": 1}), ["other"])
    papers.execute("INSERT INTO notes VALUES (9, 'other', '{}')")
    papers.execute("INSERT INTO facts VALUES (9, '\"size\"', '1')")
    with pytest.raises(SyscallError, match="'size'") as refused:
        refuse_unknown(papers, parse({"year": 1}), ["other"])
    assert "author" not in str(refused.value)


def test_whether_a_field_is_there_may_always_be_asked(papers: sqlite3.Connection) -> None:
    refuse_unknown(papers, parse({"zzz": {"$exists": True}}), ["papers"])
