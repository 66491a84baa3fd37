"""Which notes a call is about, as SQL over `notes`.

Two parts, because one of them never changes for a note and can be remembered: its namespace, kind,
source, owner and metadata; and what depends on the time that is asked for: whether it has expired,
and whether what it says was so then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmos.memory.conditions import Sql, parse
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject, JsonValue

_FEW = 500


@dataclass(frozen=True, slots=True)
class Filter:
    """Notes of some namespaces that pass every other condition given.

    Notes that expired by `now` are never among them. `at` is the time at which they must be valid,
    None is now; `with_history` takes them whenever they were valid.
    """

    namespaces: Sequence[str]
    now: float
    where: JsonObject = field(default_factory=dict[str, object])
    source: str | None = None
    ids: Sequence[int] | None = None
    kinds: Sequence[str] | None = None
    owner: str | None = None
    at: float | None = None
    with_history: bool = False

    def sql(self, *, by_note: bool = False) -> Sql:
        """All conditions and their parameters; `by_note` as in `lasting_sql`."""
        lasting, parameters = self.lasting_sql(by_note=by_note)
        conditions = [lasting, "(notes.expires_at IS NULL OR notes.expires_at > ?)"]
        parameters.append(self.now)
        if not self.with_history:
            conditions.append("(notes.valid_from IS NULL OR notes.valid_from <= ?)")
            conditions.append("(notes.valid_to IS NULL OR notes.valid_to > ?)")
            parameters += [self.valid_at, self.valid_at]
        if self.ids is not None:
            among, values = _among(self.ids)
            conditions.append(f"notes.id IN {among}")
            parameters += values
        return " AND ".join(conditions), parameters

    def lasting_sql(self, *, by_note: bool = False) -> Sql:
        """The conditions that a note passes for ever or never, without `ids`.

        `by_note` is for asking about few notes, as in `Condition.sql`.

        Raises: SyscallError("invalid") for a namespace or a condition that cannot be.
        """
        among, parameters = _among([checked_namespace(name) for name in self.namespaces])
        where = parse(self.where)
        # A plus keeps SQLite from walking the namespace where metadata gives the few that match.
        is_by_metadata = self.source is None and any(one.is_positive for one in where)
        namespace = "+notes.namespace" if is_by_metadata else "notes.namespace"
        conditions = [f"{namespace} IN {among}"]
        if self.kinds is not None:
            among, values = _among(self.kinds)
            conditions.append(f"notes.kind IN {among}")
            parameters += values
        for column, value in (("source", self.source), ("owner", self.owner)):
            if value is not None:
                conditions.append(f"notes.{column} = ?")
                parameters.append(value)
        for condition in where:
            text, values = condition.sql(by_note=by_note)
            conditions.append(text)
            parameters += values
        return " AND ".join(conditions), parameters

    def lasting_key(self) -> str:
        """A text that only filters of the same lasting conditions have; checks none of them."""
        return repr((self.namespaces, self.kinds, self.source, self.owner, self.where))

    @property
    def valid_at(self) -> float:
        """The time at which what a note says must be so."""
        return self.now if self.at is None else self.at

    def whenever_valid(self) -> Filter:
        """The same with history."""
        return replace(self, with_history=True)


def checked_namespace(name: str) -> str:
    """The name itself. Raises: SyscallError("invalid") for one that SQLite would confuse.

    Its functions end a text at a NUL, which would make two namespaces one.
    """
    if not name or "\0" in name:
        raise SyscallError("invalid", "a namespace is text without NUL", field="namespace")
    return name


def _among(values: Sequence[JsonValue]) -> Sql:
    """`IN` what, for some values: with few of them SQLite's planner sees how few, and there is a
    limit to how many it takes one by one."""
    if len(values) <= _FEW:
        return f"({', '.join('?' * len(values))})", list(values)
    return "(SELECT value FROM json_each(?))", [json.dumps(list(values))]
