"""Checks of sets of rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmos.drivers.rows.checks import (
    HUGE_CHARS,
    check_apart,
    check_classes,
    check_labels,
    huge_rows,
)
from llmos.drivers.rows.kinds import LabelledRow, TaggedRow, TextRow
from llmos.syscalls.errors import SyscallError


def labelled(label: str, origin: str, group: str | None = None) -> LabelledRow:
    return LabelledRow("text " + origin, label, origin, group)


def refusal(check: Callable[[], None]) -> SyscallError:
    with pytest.raises(SyscallError) as refused:
        check()
    assert refused.value.code == "invalid"
    return refused.value


def test_one_class_only_is_refused_by_its_name() -> None:
    error = refusal(lambda: check_classes([labelled("x", "1"), labelled("x", "2")]))
    assert error.fields == {"field": "data", "labels": ["x"]}
    check_classes([labelled("x", "1"), labelled("y", "2")])
    check_classes([TextRow("a", "1")])


def test_sentences_without_an_entity_are_refused() -> None:
    nothing = TaggedRow(("a",), ("O",), "1")
    assert "every tag is O" in refusal(lambda: check_classes([nothing])).message
    check_classes([nothing, TaggedRow(("a",), ("B-per",), "2")])


def test_labels_that_training_lacks_are_refused_with_names_and_place() -> None:
    train = [labelled("x", "1")]
    test = [labelled("x", "t:1"), labelled("z", "t:2"), labelled("y", "t:3")]
    error = refusal(lambda: check_labels(train, test, field="test_data"))
    assert error.fields == {"field": "test_data", "labels": ["y", "z"], "origin": "t:3"}
    assert "'y', 'z'" in error.message
    check_labels(train, test[:1], field="test_data")


def test_many_unknown_labels_are_listed_shortly_and_carried_whole() -> None:
    test = [labelled(f"l{i:02}", str(i)) for i in range(30)]
    error = refusal(lambda: check_labels([], test, field="test_data"))
    assert "and 20 more" in error.message
    assert len(error.fields["labels"]) == 30


def test_a_group_on_both_sides_is_refused_and_equal_rows_alone_are_not() -> None:
    train = [labelled("x", "1", "ann"), labelled("x", "2", "bob")]
    error = refusal(lambda: check_apart(train, [labelled("x", "t:1", "bob")], field="eval_data"))
    assert error.fields == {"field": "eval_data", "groups": ["bob"], "origin": "t:1"}
    check_apart(train, [labelled("x", "1", "cid"), labelled("x", "2")], field="eval_data")


def test_huge_rows_are_named() -> None:
    rows = [TextRow("a" * HUGE_CHARS, "fits"), TextRow("a" * (HUGE_CHARS + 1), "is huge")]
    assert huge_rows(rows) == ["is huge"]
