"""Rows written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.writing import write_rows
from llmos.syscalls.content import assistant, user
from llmos.syscalls.results import ToolSpec

TOOL = ToolSpec(name="add", description="Add.", parameters={"type": "object"})
ROWS: dict[str, Row] = {
    "instruct": ChatRow((user("a\u2028b"), assistant("c")), "row 1", "g", (TOOL,)),
    "pretrain": TextRow("one\ntwo", "row 1", "g"),
    "classify": LabelledRow("caf\u00e9", "x", "row 1", "g"),
    "tag": TaggedRow(("Ann", "sings"), ("B-per", "O"), "row 1", "g"),
    "prefer": PreferRow((user("a"),), "b", "c", "row 1", "g", (TOOL,)),
    "embed": PairRow("a", "b", "c", "row 1", "g"),
}


@pytest.mark.parametrize("objective", list(ROWS))
def test_a_row_is_read_back_as_it_was_written(objective: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert write_rows([ROWS[objective]], path) == 1
    assert read_rows(path, objective, group_field="group") == [ROWS[objective]]
