"""A record's fields, checked: text, lists of text, objects; what is wrong is named.

Refuses to know which fields an objective needs (`forms.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

from llmos.drivers.rows.problems import refused
from llmos.syscalls.values import JsonObject


def text_of(fields: JsonObject, name: str, origin: str, shown_as: str | None = None) -> str:
    """A field that must be text. Raises: SyscallError("invalid")."""
    value = fields.get(name)
    if not isinstance(value, str):
        found = "missing" if value is None else f"not text but {type(value).__name__}"
        if value is None and (near := get_close_matches(name, list(fields), n=1)):
            found += f"; the row has {near[0]!r}"
        raise refused(origin, shown_as or name, found)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise refused(origin, shown_as or name, "not Unicode text: it has half a surrogate pair")
    return value


def filled(fields: JsonObject, name: str, origin: str) -> str:
    """A field that must be text and not blank."""
    text = text_of(fields, name, origin)
    if not text.strip():
        raise refused(origin, name, "blank; write something or take the row out")
    return text


def texts_of(fields: JsonObject, name: str, origin: str) -> tuple[str, ...]:
    """A field that must be a list of text, not empty."""
    value: Any = fields.get(name)
    if not isinstance(value, list | tuple):
        found = "missing" if value is None else f"not a list but {type(value).__name__}"
        raise refused(origin, name, found)
    items = cast("Sequence[Any]", value)
    if not items:
        raise refused(origin, name, "empty; a sentence has at least one word")
    return tuple(text_of({name: item}, name, origin, f"{name}.{i}") for i, item in enumerate(items))


def label_of(fields: JsonObject, name: str, origin: str) -> str:
    """A field that names a class: text that is not blank, or a whole number or truth value."""
    value: Any = fields.get(name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return filled(fields, name, origin).strip()


def object_of(value: Any, origin: str, field: str) -> JsonObject:
    """A value that must be a JSON object."""
    if not isinstance(value, dict):
        found = "missing" if value is None else f"must be an object but is {type(value).__name__}"
        raise refused(origin, field, found)
    return cast(JsonObject, value)


def name_in(fields: JsonObject, names: Sequence[str], origin: str) -> str:
    """Which of a field's usual names a row has: the first one, or else the only one.

    Raises: SyscallError("invalid") when it has none, or two that are both usual.
    """
    found = [name for name in names if fields.get(name) is not None]
    if not found:
        has = ", ".join(fields) or "no fields"
        known = ", ".join(names[1:])
        raise refused(origin, names[0], f"missing (also read: {known}); the row has {has}")
    if found[0] != names[0] and len(found) > 1:
        raise refused(
            origin,
            " and ".join(found),
            f"either could be the {names[0]}; call the one that is {names[0]!r}",
        )
    return found[0]
