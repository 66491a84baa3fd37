"""Whether sets of rows can be learnt from: classes, labels that training lacks, leaks.

Owns what is wrong with a set although each of its rows is right. Every error names the labels or
groups, and where the first of them stands. `forms.py` checks single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmos.drivers.rows.content import identity, labels_of, text_of_row
from llmos.drivers.rows.kinds import LabelledRow, Row, TaggedRow
from llmos.syscalls.errors import SyscallError

# Longer than what any model here reads at once: it is cut, or is no text at all.
HUGE_CHARS = 65_536
_SHOWN = 10  # of the labels or groups in a message; its fields have all


class Leak(NamedTuple):
    """Something held out that is also trained on."""

    what: str  # a group's name, or "" for equal content
    train_origin: str
    held_out_origin: str


def check_classes(rows: Sequence[Row], *, field: str = "data") -> None:
    """Refuse labelled rows that are all of one class, and tagged ones without an entity.

    Raises: SyscallError("invalid") with `labels`.
    """
    labels = {label for row in rows for label in labels_of(row)}
    if rows and isinstance(rows[0], LabelledRow) and len(labels) == 1:
        (only,) = labels
        raise SyscallError(
            "invalid",
            f"{field}: every row has the label {only!r}, so there is nothing to tell apart; add "
            "rows of another class",
            field=field,
            labels=[only],
        )
    if rows and isinstance(rows[0], TaggedRow) and not labels:
        raise SyscallError(
            "invalid",
            f"{field}: every tag is O, so there is no entity to learn; add sentences with some",
            field=field,
            labels=[],
        )


def check_labels(train: Sequence[Row], held_out: Sequence[Row], *, field: str) -> None:
    """Refuse held-out rows with labels that no training row has; `field` is what they came by.

    Raises: SyscallError("invalid") with `labels` and `origin`, the first row of the first of them.
    """
    known = {label for row in train for label in labels_of(row)}
    unknown: dict[str, str] = {}
    for row in held_out:
        for label in labels_of(row):
            if label not in known:
                unknown.setdefault(label, row.origin)
    if not unknown:
        return
    labels = sorted(unknown)
    raise SyscallError(
        "invalid",
        f"{field}: no training row has the label {_listed(labels)} ({labels[0]!r} stands in "
        f"{unknown[labels[0]]}); add rows of it to the training data or take these out",
        field=field,
        labels=labels,
        origin=unknown[labels[0]],
    )


def check_apart(train: Sequence[Row], held_out: Sequence[Row], *, field: str) -> None:
    """Refuse held-out rows whose group is trained on.

    Raises: SyscallError("invalid") with `groups`.
    """
    leaks = [leak for leak in find_leaks(train, held_out) if leak.what]
    if not leaks:
        return
    groups = sorted({leak.what for leak in leaks})
    first = min(leaks, key=lambda leak: leak.what)
    raise SyscallError(
        "invalid",
        f"{field}: the group {_listed(groups)} is held out and trained on ({first.held_out_origin} "
        f"and {first.train_origin}), so the score would be of what was seen; keep each on one side",
        field=field,
        groups=groups,
        origin=first.held_out_origin,
    )


def find_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> list[Leak]:
    """Held-out rows whose group, or whose exact content, is in the training rows."""
    groups: dict[str, str] = {}
    contents: dict[bytes, str] = {}
    for row in train:
        contents.setdefault(identity(row), row.origin)
        if row.group is not None:
            groups.setdefault(row.group, row.origin)
    leaks: list[Leak] = []
    for row in held_out:
        if row.group is not None and row.group in groups:
            leaks.append(Leak(row.group, groups[row.group], row.origin))
        if origin := contents.get(identity(row)):
            leaks.append(Leak("", origin, row.origin))
    return leaks


def huge_rows(rows: Sequence[Row]) -> list[str]:
    """Origins of rows with more than `HUGE_CHARS` characters: they are kept, and cut to fit."""
    return [row.origin for row in rows if len(text_of_row(row)) > HUGE_CHARS]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
