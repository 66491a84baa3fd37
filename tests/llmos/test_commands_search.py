"""How a search is asked for in words, and what a person is told of it."""

from __future__ import annotations

import pytest

from llmos.commands_search import event_line, search_call, search_space, searched_tables
from llmos.exits import UsageError
from llmos.syscalls.calls import Finetune
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.evaluation_results import Searched, Trial


def test_words_name_ranges_and_choices() -> None:
    assert search_space(["rank=2..16", "learning_rate=1e-5..0.01:log", "method=lora|dora"]) == {
        "rank": Between(low=2, high=16),
        "learning_rate": Between(low=1e-5, high=0.01, is_log=True),
        "method": OneOf(values=("lora", "dora")),
    }
    assert search_space(["layer_decay=null|0.9"]) == {"layer_decay": OneOf(values=(None, 0.9))}


@pytest.mark.parametrize(
    "words", [[], ["rank"], ["rank="], ["rank=9..2"], ["dropout=0..1:log"], ["rank=a..b"]]
)
def test_what_names_no_values_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        search_space(words)


def test_a_field_that_no_finetune_has_is_refused() -> None:
    finetune = Finetune(data="rows.jsonl", name="n")
    options = {"trials": 1, "parallel": 1, "metric": None, "is_pruned": True, "seed": 0}
    with pytest.raises(SyscallError, match="no such setting"):
        search_call(finetune, ["rnk=1..2"], **options)  # pyright: ignore[reportArgumentType]


def test_events_are_told_in_a_line() -> None:
    told = [
        event_line(event)
        for event in (
            {"event": "trial", "trial": 1, "name": "n-1", "settings": {"rank": 4}},
            {"event": "tried", "trial": 1, "loss": 0.5, "best": 0.25},
            {"event": "pruned", "trial": 2},
            {"event": "failed", "trial": 3, "why": "memory"},
            {"event": "other"},
        )
    ]
    assert told == [
        "trial 1: rank 4",
        "trial 1: loss 0.5 (best 0.25)",
        "trial 2: given up",
        "trial 3: failed: memory",
        None,
    ]


def test_a_finished_search_is_shown_with_all_its_trials() -> None:
    found = Searched(
        best="n-1",
        settings={"rank": 4},
        metric="loss",
        value=0.5,
        trials=(Trial(number=0, settings={"rank": 2}, state="failed"),),
        report="report.html",
    )
    parts = [str(part) for part in searched_tables(found)[1:]]
    assert parts == ["best: n-1, loss 0.5, rank 4", "report: report.html"]
