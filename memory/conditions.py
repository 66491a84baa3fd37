"""Conditions on metadata: what `where` means, as SQL over the table `facts`.

Owns the operators, the canonical JSON that makes equality exact, and what is said about a field
that nobody has. Refuses to know namespaces, times and everything else that is no metadata.

A condition is about one field:

    {"year": 2020}                  the value is equal to it, as JSON: 1 is 1.0, and not true or "1"
    {"year": {"$gte": 2020}}        operators, all of which must hold

`$ne` also holds for a note without the field, as everything that `$eq` does not hold for. Order is
of numbers among numbers and of texts among texts by code point; nothing else has any. An object
without operators is a value like another.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, NamedTuple, cast, get_args

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject, JsonValue

Operator = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$exists", "$contains"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
LONG_VALUE_CHARACTERS = 200  # longer values are compared by their digest
_OWN_FACTS = "SELECT note FROM facts WHERE facts.note = notes.id AND key = ?"
_ALL_FACTS = "SELECT note FROM facts_found AS facts WHERE key = ?"
_DIGEST_MARK = "blake2b:"  # no JSON text begins like this, so a digest equals only a digest
_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# Kept, and past by for what most values are: `json.dumps` with options makes an encoder each time.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_SQLITE_INTEGER = range(-(2**63), 2**63)

Sql = tuple[str, list[JsonValue]]


class Condition(NamedTuple):
    """One operator on one field."""

    field: str
    operator: Operator
    value: JsonValue

    @property
    def is_positive(self) -> bool:
        """Whether only notes pass that have the field."""
        return self.operator != "$ne" and (self.operator != "$exists" or bool(self.value))

    def sql(self, *, by_note: bool = False) -> Sql:
        """It as a condition on `notes`, with its parameters.

        `by_note` looks up the facts of each note that is asked about, which is faster for few
        notes; else all facts that meet the condition are looked up once.
        """
        key = json.dumps(self.field)
        facts = _OWN_FACTS if by_note else _ALL_FACTS
        match self.operator:
            case "$exists":
                negation = "" if self.value else "NOT "
                return f"notes.id {negation}IN ({facts})", [key]
            case "$eq" | "$ne":
                negation = "NOT " if self.operator == "$ne" else ""
                return (
                    f"notes.id {negation}IN ({facts} AND value = ?)",
                    [key, stored(self.value, field="where")],
                )
            case "$in":
                values = [stored(value, field="where") for value in self.value]
                return (
                    f"notes.id IN ({facts} AND value IN ({', '.join('?' * len(values))}))",
                    [key, *values],
                )
            case "$contains":
                return self._looked_at(facts, *_contains(self.value))
            case "$gt" | "$gte" | "$lt" | "$lte":
                sign = _ORDER[self.operator]
                if isinstance(self.value, str):
                    return self._looked_at(
                        facts, f"one.type = 'text' AND one.value {sign} ?", [self.value]
                    )
                return self._looked_at(
                    facts,
                    f"one.type IN ('integer', 'real') AND one.value {sign} ?",
                    [_number(self.value)],
                    # The same for what is a short number, without reading it as JSON.
                    short=f"value GLOB '[-0-9]*' AND CAST(value AS NUMERIC) {sign} ?",
                )

    def _looked_at(
        self, facts: str, test: str, values: list[JsonValue], short: str | None = None
    ) -> Sql:
        """A test of the value itself, `one`: from `facts`, or from the note where it is long."""
        key, is_long = json.dumps(self.field), f"facts.value GLOB '{_DIGEST_MARK}*'"
        if short is None:
            short = (
                f"EXISTS (SELECT 1 FROM json_each(CASE WHEN {is_long} THEN '[]' ELSE"
                f" '[' || facts.value || ']' END) AS one WHERE {test})"
            )
        return (
            f"notes.id IN ({facts} AND {short}"
            f" UNION ALL {facts} AND {is_long} AND EXISTS (SELECT 1 FROM notes AS whole,"
            " json_each(whole.metadata) AS one WHERE whole.id = facts.note AND one.key = ?"
            f" AND {test}))",
            [key, *values, key, self.field, *values],
        )


def parse(where: JsonObject) -> tuple[Condition, ...]:
    """The conditions of a `where`, all of which must hold.

    Raises: SyscallError("invalid") that names the field or operator and what there is instead.
    """
    return tuple(
        condition for field, value in where.items() for condition in _conditions(field, value)
    )


def _conditions(field: str, value: JsonValue) -> Iterator[Condition]:
    if not isinstance(value, dict):
        yield Condition(field, "$eq", value)
        return
    operators = cast("dict[Any, Any]", value)
    if not any(isinstance(name, str) and name.startswith("$") for name in operators):
        yield Condition(field, "$eq", operators)
        return
    for name, operand in operators.items():
        if name not in OPERATORS:
            raise _invalid(field, f"{name!r} is no operator; they are {', '.join(OPERATORS)}")
        yield Condition(field, name, _checked(field, name, operand))


def _checked(field: str, name: Operator, operand: JsonValue) -> JsonValue:
    match name:
        case "$exists":
            if not isinstance(operand, bool):
                raise _invalid(field, "$exists takes true or false")
        case "$in":
            if not isinstance(operand, list | tuple) or not operand:
                raise _invalid(field, "$in takes a list of at least one value")
        case "$contains":
            if isinstance(operand, dict | list | tuple):
                raise _invalid(field, "$contains takes a text, a number, true, false or null")
        case "$gt" | "$gte" | "$lt" | "$lte":
            if isinstance(operand, bool) or not isinstance(operand, int | float | str):
                raise _invalid(field, f"{name} takes a number or a text")
        case "$eq" | "$ne":
            pass
    return operand


def _contains(operand: JsonValue) -> Sql:
    """A test for a list `one` that has an element, or a text `one` that has a part."""
    values: list[JsonValue] = []
    if operand is None:
        is_equal = "part.type = 'null'"
    elif isinstance(operand, bool):
        is_equal = f"part.type = '{'true' if operand else 'false'}'"
    elif isinstance(operand, str):
        is_equal, values = "part.type = 'text' AND part.value = ?", [operand]
    else:
        is_equal = "part.type IN ('integer', 'real') AND part.value = ?"
        values = [_number(operand)]
    test = (
        "one.type = 'array' AND EXISTS (SELECT 1 FROM json_each(CASE one.type WHEN 'array' THEN"
        f" one.value ELSE '[]' END) AS part WHERE {is_equal})"
    )
    if isinstance(operand, str):
        return f"({test} OR one.type = 'text' AND instr(one.value, ?) > 0)", [operand, operand]
    return f"({test})", values


def _number(value: float) -> float:
    """A number as SQLite can hold it; beyond 64 bits as the nearest real."""
    return value if isinstance(value, float) or value in _SQLITE_INTEGER else float(value)


def entries(metadata: JsonObject) -> tuple[str, list[tuple[str, str]]]:
    """Metadata as canonical JSON, and each entry as `facts` holds it.

    Raises: SyscallError("invalid") for what is no JSON.
    """
    texts = [
        (encode_basestring_ascii(key), canonical(metadata[key], field="metadata"))
        for key in sorted(metadata)
    ]
    whole = ",".join(f"{key}:{text}" for key, text in texts)
    return f"{{{whole}}}", [(key, _short(text)) for key, text in texts]


def stored(value: JsonValue, *, field: str) -> str:
    """A metadata value as `facts` holds it. Raises: SyscallError("invalid") for what is no JSON."""
    return _short(canonical(value, field=field))


def _short(text: str) -> str:
    if len(text) <= LONG_VALUE_CHARACTERS:
        return text
    return _DIGEST_MARK + blake2b(text.encode(), digest_size=16).hexdigest()


def canonical(value: JsonValue, *, field: str) -> str:
    """JSON text that is equal exactly for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    try:
        if type(value) is str:
            return encode_basestring_ascii(value)
        if type(value) is int:
            return repr(value)
        return _ENCODER.encode(_whole_numbers(value))
    except (TypeError, ValueError) as problem:
        raise SyscallError("invalid", f"{field} is not JSON: {problem}", field=field) from problem


def _whole_numbers(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_whole_numbers(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def refuse_unknown(
    sql: sqlite3.Connection, conditions: Sequence[Condition], namespaces: Sequence[str]
) -> None:
    """Refuse conditions on a field that no note of the namespaces has, though some have others.

    A search that finds nothing is the time to ask; it then costs in proportion to the metadata.
    Whether a field is there may always be asked. An empty namespace has no fields to know.
    Raises: SyscallError("invalid") that names the field and the nearest one that is known.
    """
    asked = {one.field for one in conditions if one.operator != "$exists"}
    within = json.dumps(list(namespaces))
    unknown = [
        field
        for field in sorted(asked)
        if sql.execute(
            "SELECT 1 FROM facts JOIN notes ON notes.id = facts.note WHERE facts.key = ?"
            " AND notes.namespace IN (SELECT value FROM json_each(?)) LIMIT 1",
            (json.dumps(field), within),
        ).fetchone()
        is None
    ]
    if not unknown:
        return
    keys = sql.execute(
        "SELECT DISTINCT facts.key FROM notes JOIN facts ON facts.note = notes.id"
        " WHERE notes.namespace IN (SELECT value FROM json_each(?))",
        (within,),
    )
    known = sorted(json.loads(key) for (key,) in keys)
    if known:
        raise unknown_field(unknown[0], known)


def unknown_field(field: str, known: Sequence[str]) -> SyscallError:
    """The error for a field that no note has, with the nearest that one has, or some of them."""
    near = difflib.get_close_matches(field, known, n=1)
    if near:
        hint = f"did you mean {near[0]!r}?"
    else:
        shown = ", ".join(repr(name) for name in known[:8])
        hint = f"they have {shown}{', ...' if len(known) > 8 else ''}"
    return _invalid(field, f"no note in these namespaces has this field; {hint}")


def _invalid(field: str, problem: str) -> SyscallError:
    return SyscallError("invalid", f"where.{field}: {problem}", field=f"where.{field}")
