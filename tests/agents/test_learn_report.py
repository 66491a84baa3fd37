"""A loop's report: rounds, verdicts, what a reader sees at any time."""

from __future__ import annotations

import pytest

from llmos.agents.learn_record import Collected, Ended, Event, Judged, Measured, TrainedVersion
from llmos.agents.learn_report import html_report, markdown_report, picture

BASE = Measured(
    round=0, version=None, outcomes=(0, 0, 0, 1), kinds=tuple("aabb"), seconds=1, tokens=5
)
FOUND = Collected(
    round=1,
    tried=8,
    attempts=20,
    solved=4,
    rows=3,
    by_kind={"a": 3},
    all_rows=3,
    untrained_rows=3,
    seconds=2,
    tokens=50,
)
TRAINED = TrainedVersion(
    round=1, version="v-1", base="b", rows=3, losses=((1, 2.0), (9, 0.5)), seconds=3, tokens=600
)
AFTER = Measured(
    round=1, version="v-1", outcomes=(1, 1, 0, 1), kinds=tuple("aabb"), seconds=1, tokens=5
)


def judged(verdict: str) -> Judged:
    return Judged.model_validate(
        {"round": 1, "verdict": verdict, "version": "v-1", "gain": (0.5, 0.1, 0.9)}, strict=False
    )


def test_a_report_can_be_written_before_anything_is_measured() -> None:
    assert "Nothing is measured yet." in markdown_report("t", [])
    assert "<svg" not in html_report("t", [])


def test_a_round_has_its_figures_in_one_line() -> None:
    events: list[Event] = [BASE, FOUND, TRAINED, AFTER, judged("promoted"), Ended(why="rounds")]
    text = markdown_report("t", events)
    assert (
        "| 1 | 8 | 4 | 3 | 3 | 2.00 → 0.50 | v-1 | 75% (30% to 95%) | +50% (+10% to +90%) |" in text
    )
    assert "| v-1 | 2/2 | 1/2 |" in text
    assert "At first 25%" in text
    assert "with v-1, in use now, 75%" in text
    assert "7 s and 660 tokens so far. It ended: all rounds are done." in text


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        ("discarded", "discarded"),
        ("refused", "refused by the gate"),
        ("too_little_data", "too little data yet"),
    ],
)
def test_a_version_that_is_not_promoted_is_not_called_in_use(verdict: str, shown: str) -> None:
    text = markdown_report("t", [BASE, FOUND, TRAINED, AFTER, judged(verdict)])
    assert shown in text
    assert "in use now" not in text


def test_the_picture_shows_what_was_put_in_use_and_what_was_not() -> None:
    assert picture([BASE, AFTER, judged("promoted")]).count("#b0552f") == 0
    assert picture([BASE, AFTER, judged("discarded")]).count("#b0552f") == 2


def test_names_cannot_break_the_page() -> None:
    page = html_report("<script>", [BASE, AFTER.model_copy(update={"version": "<b>"})])
    assert "<script>" not in page
    assert "<b>" not in page
