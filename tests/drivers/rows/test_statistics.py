"""What a set of rows is like, as figures and as a page."""

from __future__ import annotations

import json

from llmos.drivers.rows.kinds import LabelledRow, TaggedRow
from llmos.drivers.rows.statistics import statistics

ROWS = [
    LabelledRow("Where is my card?", "card", "1", "ann"),
    LabelledRow("Where is my card?", "card", "2", "ann"),
    LabelledRow("where is my card", "money", "3", "bob"),
    LabelledRow("Mail ann@example.org about the transfer", "money", "4"),
    LabelledRow("x" * 70_000, "card|other", "5"),
]


def test_the_figures_of_labelled_rows() -> None:
    found = statistics(ROWS, "classify")
    assert (found.rows, found.groups, found.exact_duplicates) == (5, 2, 1)
    assert found.labels == {"card": 2, "money": 2, "card|other": 1}
    assert found.balance is not None and 0.9 < found.balance < 1
    assert [pair[:2] for pair in found.near_duplicates] == [("2", "1"), ("3", "1")]
    assert found.conflicts == (("3", "1"),)
    assert found.huge == ("5",)
    assert found.personal == {"email": 1}
    assert (found.chars.least, found.chars.median, found.chars.most) == (16, 17, 70_000)


def test_entities_are_counted_and_odd_tags_named() -> None:
    rows = [
        TaggedRow(("Ann", "Lee", "sings"), ("B-per", "I-per", "O"), "1"),
        TaggedRow(("in", "Rome"), ("O", "I-loc"), "2"),
    ]
    found = statistics(rows, "tag")
    assert found.labels == {"per": 1}
    assert found.odd_tags == ("2",)
    assert found.balance is None


def test_the_figures_have_a_json_form_and_a_page() -> None:
    found = statistics(ROWS, "classify")
    assert json.loads(json.dumps(found.json()))["rows"] == 5
    page = found.markdown("Cards")
    assert page.startswith("# Cards\n\n|")
    assert "| card\\|other | 1 |" in page
    assert "## Alike, but labelled otherwise" in page and "## Huge rows" in page
