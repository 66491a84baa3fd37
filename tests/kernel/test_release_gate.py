from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.release_gate import Measured, judge, refusal
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.learning_results import GateFigure

SETS = {
    ("new", "tools"): Measured({"accuracy": 0.8, "loss": 1.2}, {"accuracy": (0.7, 0.9)}),
    ("old", "tools"): Measured({"accuracy": 0.85, "loss": 1.0}),
    (None, "tools"): Measured({"accuracy": 0.2, "loss": 3.0}),
}


class Sets:
    """Sets whose figures are known, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, str]] = []

    async def measure(self, version: str | None, check: GateCheck) -> Measured:
        self.asked.append((version, check.data))
        return SETS[version, check.data]


def judged(*checks: GateCheck, current: str | None = "old") -> tuple[GateFigure, ...]:
    return asyncio.run(judge(checks, version="new", current=current, measure=Sets().measure))


def check(**options: object) -> GateCheck:
    values = {"name": "c", "data": "tools", "metric": "accuracy", **options}
    return GateCheck.model_validate(values)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"at_least": 0.8}, ""),
        ({"at_least": 0.85}, "accuracy is 0.8, 0.05 under 0.85"),
        ({"metric": "loss", "at_most": 1.0}, "loss is 1.2, 0.2 over 1"),
        ({"max_regression": 0.06}, ""),
        (
            {"max_regression": 0.01},
            "accuracy is 0.8 against 0.85, worse by 0.05; allowed is 0.01",
        ),
        (
            {"metric": "loss", "is_higher_better": False, "max_regression": 0.1},
            "loss is 1.2 against 1, worse by 0.2; allowed is 0.1",
        ),
        ({"min_gain": 0.01}, "accuracy is 0.8 against 0.85, a gain of -0.05; wanted is 0.01"),
        ({}, ""),
    ],
)
def test_a_check_says_what_does_not_hold_and_by_how_much(
    options: dict[str, object], why: str
) -> None:
    (figure,) = judged(check(**options))
    assert (figure.why, figure.holds) == (why, not why)


def test_a_set_is_measured_once_and_the_current_version_only_to_compare() -> None:
    sets = Sets()
    checks = [check(at_least=0.1), check(metric="loss", at_most=9.0)]
    asyncio.run(judge(checks, version="new", current="old", measure=sets.measure))
    assert sets.asked == [("new", "tools")]
    checks.append(check(max_regression=1.0))
    sets.asked.clear()
    asyncio.run(judge(checks, version="new", current=None, measure=sets.measure))
    assert sets.asked == [("new", "tools"), (None, "tools")]


def test_a_first_version_of_what_no_base_can_do_is_compared_with_nothing() -> None:
    async def scenario() -> tuple[GateFigure, ...]:
        checks = [check(max_regression=0.0, min_gain=0.5)]
        return await judge(
            checks, version="new", current=None, measure=Sets().measure, has_base=False
        )

    (figure,) = asyncio.run(scenario())
    assert (figure.holds, figure.current) == (True, None)


def test_figures_keep_intervals_and_what_they_were_compared_with() -> None:
    (figure,) = judged(check(max_regression=0.1))
    assert (figure.value, figure.interval, figure.current) == (0.8, (0.7, 0.9), 0.85)


def test_a_metric_that_a_set_does_not_give_is_named_with_those_it_does() -> None:
    with pytest.raises(SyscallError, match="accuracy, loss") as problem:
        judged(check(metric="f1"))
    assert problem.value.code == "invalid"


def test_a_refusal_names_the_checks_and_survives_pickling() -> None:
    figures = judged(check(at_least=0.9))
    error = refusal("new", "small", figures)
    assert error.code == "refused"
    assert "c: accuracy is 0.8, 0.1 under 0.9" in error.message
    assert SyscallError.from_value(error.value()).fields["failing"] == error.fields["failing"]


numbers = st.floats(min_value=-100, max_value=100)


@given(value=numbers, current=numbers, bound=st.floats(min_value=0, max_value=10))
def test_a_regression_is_judged_alike_in_both_directions(
    value: float, current: float, bound: float
) -> None:
    async def measure(version: str | None, check: GateCheck) -> Measured:
        found = value if version == "new" else current
        return Measured({"up": found, "down": -found})

    checks = [
        check(metric="up", max_regression=bound),
        check(metric="down", is_higher_better=False, max_regression=bound),
    ]
    up, down = asyncio.run(judge(checks, version="new", current="old", measure=measure))
    assert up.holds == down.holds == (current - value <= bound)
