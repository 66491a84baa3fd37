"""A report is one page with its pictures, and the same in Markdown."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from llmos.drivers.metrics import pictures
from llmos.drivers.metrics.predictions import (
    Prediction,
    compare,
    read_predictions,
    score,
    write_predictions,
)
from llmos.drivers.metrics.report import search_parts, write_pages, write_report
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation_results import Compared, Evaluated, Searched, Table, Trial

RIGHT = [Prediction(f"row {n}", f"text {n}", "ab"[n % 2], "ab"[n % 2], 0.9, 0.1) for n in range(20)]
HALF = [one._replace(said="a", confidence=0.6, loss=0.7) for one in RIGHT]
TAGGED = [
    Prediction("row 1", "Oslo is far", ["B-place", "O", "O"], ["B-place", "O", "O"]),
    Prediction("row 2", "Ann ran", ["B-person", "O"], ["O", "O"]),
]


def evaluated(objective: str, predictions: list[Prediction], **more: object) -> Evaluated:
    scores = score(objective, predictions, resamples=100)
    return Evaluated(
        model="<tiny>",
        objective=objective,
        rows=len(predictions),
        tokens=1,
        metrics=scores.metrics,
        intervals=scores.intervals,
        tables=scores.tables,
        **more,  # pyright: ignore[reportArgumentType]
    )


def test_labels_with_probabilities_have_a_loss_and_a_calibration() -> None:
    scores = score("classify", HALF, labels=["b", "a"], resamples=100)

    assert scores.metrics["accuracy"] == 0.5
    assert scores.metrics["calibration_error"] == pytest.approx(0.1)
    assert scores.loss == pytest.approx(0.7)
    assert scores.metrics["perplexity"] == pytest.approx(2.0137, abs=1e-3)
    assert scores.tables["confusion"].columns == ("class", "b", "a")
    assert scores.tables["mistakes"].rows == (("b", "a", 10),)
    low, high = scores.intervals["accuracy"]
    assert low < 0.5 < high


def test_labels_without_probabilities_have_no_calibration() -> None:
    scores = score("classify", [one._replace(confidence=None, loss=None) for one in HALF])

    assert scores.loss is None
    assert "reliability" not in scores.tables
    assert "calibration_error" not in scores.metrics


def test_an_answer_that_is_wrong_is_shown_with_what_was_wanted() -> None:
    answers = [Prediction("row 1", "q", "yes", "Yes."), Prediction("row 2", "q", "no", "maybe")]
    scores = score("generate", answers)

    assert scores.metrics["exact_match"] == 0.5
    assert [row[0] for row in scores.tables["worst"].rows] == ["row 2"]


def test_a_comparison_is_by_the_same_rows() -> None:
    changes = compare("classify", RIGHT, HALF, resamples=200)

    assert changes["accuracy"].value == 0.5
    assert changes["accuracy"].is_clear
    assert changes["loss"].value == pytest.approx(-0.6)
    with pytest.raises(SyscallError, match="the same rows in the same order"):
        compare("classify", RIGHT, list(reversed(RIGHT)))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(SyscallError, match="no rows"):
        score("classify", [])


def test_predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [*HALF, *TAGGED])

    assert read_predictions(tmp_path / "p.jsonl") == [*HALF, *TAGGED]


def test_a_page_holds_its_pictures_and_escapes_what_rows_say(tmp_path: Path) -> None:
    odd = [one._replace(shown="<script>alert(1)</script>") for one in HALF]
    other = Compared(
        model="other", metrics={"accuracy": 0.9}, changes=compare("classify", HALF, RIGHT)
    )
    page = write_report(
        tmp_path,
        evaluated("classify", odd, compared=(other,)),
        curves={"training": [(1, 2.0), (2, 1.0)]},
    )
    html = page.read_text(encoding="utf-8")

    assert "&lt;tiny&gt;" in html
    assert "<script" not in html
    assert html.count("<svg") == 4  # models, learning curve, confusion, reliability
    assert "http" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![Confusion](confusion.svg)" in text
    assert "| other | Accuracy | -0.5 |" in text
    for picture in tmp_path.glob("*.svg"):
        ElementTree.parse(picture)


def test_entities_have_a_bar_each(tmp_path: Path) -> None:
    page = write_report(tmp_path, evaluated("tag", TAGGED))

    assert "person" in page.read_text(encoding="utf-8")
    assert (tmp_path / "entities.svg").is_file()


def test_a_report_without_any_entity_is_written(tmp_path: Path) -> None:
    write_report(tmp_path, evaluated("tag", [Prediction("row 1", "x", ["O"], ["O"])]))


def test_a_search_reports_its_trials(tmp_path: Path) -> None:
    found = Searched(
        best="v-1",
        settings={"rank": 8},
        metric="loss",
        value=0.5,
        trials=(
            Trial(number=0, settings={"rank": 4}, state="failed", why="memory"),
            Trial(number=1, settings={"rank": 8}, state="done", value=0.5, steps=10),
        ),
    )
    page = write_pages(tmp_path, "Search", search_parts(found, {}))

    assert "v-1: loss 0.5" in page.read_text(encoding="utf-8")


def test_the_same_scores_give_the_same_picture() -> None:
    table = Table(columns=("class", "a", "b"), rows=(("a", 3, 1), ("b", 0, 2)))

    assert pictures.confusion(table) == pictures.confusion(table)
    many = [f"c{n}" for n in range(60)]
    rows = tuple((name, *(int(name == other) for other in many)) for name in many)
    assert "c59" not in pictures.confusion(Table(columns=("class", *many), rows=rows))
    shown = pictures.matrix(
        [[0.9, None], [0.5, 0.8]], ["1", "2"], ["1", "2"], across="on", down="after"
    )
    assert "0.90" in shown
