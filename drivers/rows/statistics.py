"""What a set of rows is like: counts, lengths, labels, repetitions, personal data; as a report.

Owns the figures and their JSON and Markdown form. Lengths are in characters and words: tokens
depend on a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from llmos.drivers.rows.checks import huge_rows
from llmos.drivers.rows.content import labels_of, text_of_row
from llmos.drivers.rows.kinds import LabelledRow, Row, TaggedRow
from llmos.drivers.rows.near import THRESHOLD, near_duplicates
from llmos.drivers.rows.redaction import PatternRedactor, Redactor, redact_rows
from llmos.syscalls.values import JsonObject

_SHOWN = 20  # rows named, and labels listed, in the Markdown form


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths."""

    least: int
    median: int
    p95: int
    most: int
    total: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a set of rows."""

    objective: str
    rows: int
    groups: int
    chars: Lengths
    words: Lengths
    labels: dict[str, int]  # rows (classify) or entities (tag) of each, the most frequent first
    # 1 when all labels are equally frequent, near 0 when one is nearly all: entropy by its maximum
    balance: float | None
    exact_duplicates: int
    near_duplicates: tuple[tuple[str, str, float], ...]  # origin, origin it repeats, similarity
    conflicts: tuple[tuple[str, str], ...]  # near-duplicates whose labels differ
    huge: tuple[str, ...]
    odd_tags: tuple[str, ...]  # rows in which an entity begins with I-, not B-
    personal: dict[str, int]  # pieces of personal data by kind

    def json(self) -> JsonObject:
        """The figures as a JSON object."""
        return asdict(self)

    def markdown(self, title: str) -> str:
        """The figures as a page."""
        return "\n\n".join([f"# {title}", *self._sections()]) + "\n"

    def _sections(self) -> list[str]:
        facts = [
            ("objective", self.objective),
            ("rows", f"{self.rows:,}"),
            ("groups", f"{self.groups:,}" if self.groups else "none"),
            ("exact duplicates", f"{self.exact_duplicates:,}"),
            (f"near-duplicates (similarity {THRESHOLD} or more)", f"{len(self.near_duplicates):,}"),
            ("near-duplicates with another label", f"{len(self.conflicts):,}"),
            ("huge rows", f"{len(self.huge):,}"),
            ("rows in which an entity begins with I-", f"{len(self.odd_tags):,}"),
            ("personal data", _counts(self.personal) or "none found"),
        ]
        if self.balance is not None:
            facts.append(("label balance (1 is even)", f"{self.balance:.2f}"))
        sections = [_table(("", ""), facts)]
        sizes = [(unit, _row(lengths)) for unit, lengths in self._lengths()]
        head = ("length in", "least", "median", "95 %", "most", "all")
        sections.append(_table(head, [(unit, *row) for unit, row in sizes]))
        if self.labels:
            shown = list(self.labels.items())[:_SHOWN]
            counted = [(label, f"{count:,}") for label, count in shown]
            if len(self.labels) > _SHOWN:
                counted.append((f"({len(self.labels) - _SHOWN} more)", ""))
            sections.append("## Labels\n\n" + _table(("label", "count"), counted))
        if self.conflicts:
            pairs = [(a, b) for a, b in self.conflicts[:_SHOWN]]
            sections.append(
                "## Alike, but labelled otherwise\n\n" + _table(("row", "is like"), pairs)
            )
        if self.huge:
            sections.append("## Huge rows\n\n" + "\n".join(f"- {o}" for o in self.huge[:_SHOWN]))
        return sections

    def _lengths(self) -> list[tuple[str, Lengths]]:
        return [("characters", self.chars), ("words", self.words)]


def statistics(
    rows: Sequence[Row], objective: str, *, redactor: Redactor | None = None
) -> Statistics:
    """Describe rows; about 0.2 ms a row, most of it the search for near-duplicates."""
    texts = [text_of_row(row) for row in rows]
    repeated = near_duplicates(rows)
    labels = _labels(rows)
    _, personal = redact_rows(rows, redactor or PatternRedactor())
    return Statistics(
        objective=objective,
        rows=len(rows),
        groups=len({row.group for row in rows if row.group is not None}),
        chars=_distribution([len(text) for text in texts]),
        words=_distribution([len(text.split()) for text in texts]),
        labels=dict(labels.most_common()),
        balance=_balance(labels),
        exact_duplicates=len(texts) - len(set(texts)),
        near_duplicates=tuple(
            (rows[one.row].origin, rows[one.of].origin, round(one.similarity, 3))
            for one in repeated
        ),
        conflicts=tuple(
            (rows[one.row].origin, rows[one.of].origin) for one in repeated if one.is_conflict
        ),
        huge=tuple(huge_rows(rows)),
        odd_tags=tuple(row.origin for row in rows if isinstance(row, TaggedRow) and _is_odd(row)),
        personal=dict(sorted(personal.items())),
    )


def _labels(rows: Sequence[Row]) -> Counter[str]:
    """Rows of each class, or entities of each kind."""
    counted: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, LabelledRow):
            counted.update(labels_of(row))
        elif isinstance(row, TaggedRow):
            counted.update(tag[2:] for tag in row.tags if tag.startswith("B-"))
    return counted


def _balance(labels: Counter[str]) -> float | None:
    if len(labels) < 2:
        return None
    shares = [count / labels.total() for count in labels.values()]
    return round(-sum(share * math.log(share) for share in shares) / math.log(len(labels)), 4)


def _is_odd(row: TaggedRow) -> bool:
    before = ("O", *row.tags)
    return any(
        tag.startswith("I-") and earlier[2:] != tag[2:]
        for earlier, tag in zip(before, row.tags, strict=False)
    )


def _distribution(values: Sequence[int]) -> Lengths:
    ordered = sorted(values)
    last = len(ordered) - 1

    def at(share: float) -> int:
        return ordered[round(share * last)]

    return Lengths(ordered[0], at(0.5), at(0.95), ordered[-1], sum(ordered))


def _row(lengths: Lengths) -> tuple[str, ...]:
    found = (lengths.least, lengths.median, lengths.p95, lengths.most, lengths.total)
    return tuple(f"{value:,}" for value in found)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
