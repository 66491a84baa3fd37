"""A search's trials outlive the process that asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.memory.trials import Choices, Range, Trials
from llmos.syscalls.errors import SyscallError

SPACE = {
    "learning_rate": Range(1e-5, 1e-1, is_log=True),
    "rank": Range(2, 16, is_whole=True),
    "freeze": Choices(((), ("embeddings",))),
}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Trials]:
    def open_trials(**changed: Any) -> Trials:
        settings: dict[str, Any] = {
            "space": SPACE,
            "is_higher_better": False,
            "is_pruned": True,
            "seed": 1,
            "fingerprint": {"finetune": {"name": "n"}, "metric": "loss"},
        }
        return Trials(tmp_path / "s" / "trials.sqlite", **{**settings, **changed})

    return open_trials


def test_settings_are_drawn_from_the_space(opened: Callable[..., Trials]) -> None:
    trials = opened()
    for expected in range(8):
        number, settings = trials.ask()
        assert number == expected
        assert 1e-5 <= settings["learning_rate"] <= 1e-1
        assert settings["rank"] in range(2, 17)
        assert settings["freeze"] in ([], ["embeddings"])
        trials.finish(number, settings["rank"])
    best = trials.best()
    assert best is not None
    assert best[1] == min(one.value for one in trials.finished() if one.value is not None)
    trials.close()


def test_the_search_comes_near_to_the_best_settings(opened: Callable[..., Trials]) -> None:
    trials = opened(space={"x": Range(-10, 10)})
    for _ in range(40):
        number, settings = trials.ask()
        trials.finish(number, (settings["x"] - 3) ** 2)
    best = trials.best()
    assert best is not None
    assert best[1] < 0.5
    trials.close()


def test_a_trial_under_way_at_a_crash_is_handed_out_again(opened: Callable[..., Trials]) -> None:
    trials = opened()
    number, _ = trials.ask()
    trials.finish(number, 1.0)
    lost, settings = trials.ask()
    trials.is_hopeless(lost, 1, 3.0)
    trials.close()

    again = opened()
    assert again.ask() == (lost, settings)
    again.is_hopeless(lost, 1, 3.0)  # it comes by this step again
    again.is_hopeless(lost, 2, 2.0)
    again.finish(lost, 0.5)
    assert [one.value for one in again.finished()] == [1.0, 0.5]
    new, other = again.ask()
    assert new == lost + 1
    assert other != settings
    again.close()


def test_a_trial_below_the_median_is_hopeless(opened: Callable[..., Trials]) -> None:
    trials = opened()
    for _ in range(3):
        number, _ = trials.ask()
        assert not trials.is_hopeless(number, 10, 1.0)
        trials.finish(number, 1.0)
    number, _ = trials.ask()
    assert trials.is_hopeless(number, 10, 5.0)
    trials.give_up(number)
    number, _ = trials.ask()
    assert not trials.is_hopeless(number, 10, 0.5)
    trials.fail(number, "out of memory")
    trials.close()

    shown = opened(is_pruned=False).finished()
    assert [one.state for one in shown] == ["done", "done", "done", "pruned", "failed"]
    assert (shown[3].value, shown[3].steps, shown[4].why) == (5.0, 10, "out of memory")


def test_another_search_under_the_same_name_is_refused(opened: Callable[..., Trials]) -> None:
    opened().close()

    with pytest.raises(SyscallError, match="begun with another metric"):
        opened(fingerprint={"finetune": {"name": "n"}, "metric": "f1"})


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")

    with pytest.raises(SyscallError) as refused:
        Trials(
            tmp_path / "s" / "trials.sqlite",
            space=SPACE,
            is_higher_better=True,
            is_pruned=True,
            seed=0,
            fingerprint={},
        )
    assert refused.value.code == "storage"


def test_a_search_is_drawn_as_far_as_its_trials_go(opened: Callable[..., Trials]) -> None:
    trials = opened()
    assert trials.plots() == {}
    for value in (3.0, 2.0, 1.0, 4.0, 2.5):
        number, _ = trials.ask()
        trials.is_hopeless(number, 1, value)
        trials.finish(number, value)
    plots = trials.plots()
    assert list(plots) == ["History", "Settings", "Course of the trials", "Importance"]
    assert all(picture.startswith("<svg") for picture in plots.values())
    trials.close()
