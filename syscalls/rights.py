"""What a process may do, and how much of it.

Capabilities deny by default: a process holds only what it was given at its start, and can give a
child no more than it holds. Quotas bound consumption; a child's use is also charged to its
ancestors, so that spawning never escapes a bound.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from pydantic import Field

from llmos.syscalls.values import Value


def _any_match(patterns: frozenset[str], name: str) -> bool:
    return name in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _covers(patterns: frozenset[str], grant: str) -> bool:
    """Whether all that a grant allows is allowed by the patterns already.

    A grant may itself be a pattern: "?" matches the text "*", and must not grant it. So a pattern
    is covered by itself or by a plain prefix ("a*" covers "ab?"), though others might cover it too.
    """
    if grant in patterns:
        return True
    if not _is_pattern(grant):
        return _any_match(patterns, grant)
    prefixes = [pattern[:-1] for pattern in patterns if pattern.endswith("*")]
    return any(grant.startswith(p) for p in prefixes if not _is_pattern(p))


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


class Capabilities(Value):
    """Names (or shell patterns) that a process may use.

    `read` and `write` are memory namespaces; `folders_read` and `folders_write` are absolute
    directories outside the process's home. The process's own namespace and home need no entry.
    Without `raise_priority` nobody gets a lower `nice` through this process than it has itself.
    """

    models: frozenset[str] = frozenset()
    tools: frozenset[str] = frozenset()
    programs: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()
    folders_read: frozenset[str] = frozenset()
    folders_write: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    learn: bool = False
    signal_any: bool = False
    observe_any: bool = False
    raise_priority: bool = False

    def allows(self, kind: str, name: str) -> bool:
        """Whether `name` is allowed under the set-valued field called `kind`."""
        return _any_match(getattr(self, kind), name)

    def exceeds(self, other: Capabilities) -> str | None:
        """The first grant here that `other` does not hold, as `field:name`, or None."""
        for field in type(self).model_fields:
            mine, theirs = getattr(self, field), getattr(other, field)
            if isinstance(mine, bool):
                if mine and not theirs:
                    return field
                continue
            for name in sorted(mine):
                # Folders are no patterns, but for the one that stands for all.
                is_folder = field.startswith("folders_")
                if not (theirs & {"*", name} if is_folder else _covers(theirs, name)):
                    return f"{field}:{name}"
        return None


_ALL = frozenset({"*"})
ALL_CAPABILITIES = Capabilities(
    models=_ALL,
    tools=_ALL,
    programs=_ALL,
    read=_ALL,
    write=_ALL,
    folders_read=_ALL,
    folders_write=_ALL,
    topics=_ALL,
    learn=True,
    signal_any=True,
    observe_any=True,
    raise_priority=True,
)


class Quota(Value):
    """Upper bounds for a process and its descendants together; None is unbounded."""

    tokens_in: int | None = Field(default=None, ge=0)
    tokens_out: int | None = Field(default=None, ge=0)
    kv_bytes: int | None = Field(default=None, ge=0)
    tool_s: float | None = Field(default=None, ge=0)
    children: int | None = Field(default=None, ge=0)
    wall_s: float | None = Field(default=None, gt=0)
