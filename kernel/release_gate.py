"""What stands between a version and its promotion: declared metrics on declared sets.

A gate is a list of checks. Each set is measured once for the version, and once for what serves now
where a check compares the two; the figures are kept whatever comes of it. Refuses to know how a
metric comes about (`Measure` is told the version and the set) and what a promotion does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.learning_results import GateFigure


class Measured(NamedTuple):
    """What a set says of a version: metrics by name, and the intervals of those that have one."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = {}


# The version's name, None for the base itself, and the set's path.
Measure = Callable[[str | None, str], Awaitable[Measured]]


async def judge(
    checks: Iterable[GateCheck], *, version: str, current: str | None, measure: Measure
) -> tuple[GateFigure, ...]:
    """What each check finds of a version, against the one that serves now.

    Raises: SyscallError("invalid") for a metric that a set does not give, naming those it does;
    whatever measuring raises.
    """
    known: dict[tuple[str | None, str], Measured] = {}

    async def measured(name: str | None, data: str) -> Measured:
        if (name, data) not in known:
            known[name, data] = await measure(name, data)
        return known[name, data]

    figures: list[GateFigure] = []
    for check in checks:
        found = await measured(version, check.data)
        before = None
        if check.max_regression is not None or check.min_gain is not None:
            before = _metric(await measured(current, check.data), check)
        value = _metric(found, check)
        problems = list(_problems(check, value, before))
        figures.append(
            GateFigure(
                check=check.name,
                metric=check.metric,
                value=value,
                interval=found.intervals.get(check.metric),
                current=before,
                holds=not problems,
                why="; ".join(problems),
                is_safety=check.is_safety,
            )
        )
    return tuple(figures)


def refusal(name: str, slot: str, figures: Sequence[GateFigure]) -> SyscallError:
    """The error that says which metrics keep a version from being promoted, and by how much."""
    failing = [figure for figure in figures if not figure.holds]
    told = "; ".join(f"{figure.check}: {figure.why}" for figure in failing)
    return SyscallError(
        "refused",
        f"the gate of {slot} does not let {name} be promoted: {told}",
        name=name,
        slot=slot,
        failing=[figure.model_dump(mode="json") for figure in failing],
    )


def _metric(measured: Measured, check: GateCheck) -> float:
    value = measured.metrics.get(check.metric)
    if value is None:
        known = ", ".join(sorted(measured.metrics)) or "none"
        raise SyscallError(
            "invalid",
            f"metric: the check {check.name} asks for {check.metric}, and its set gives: {known}",
            field="metric",
        )
    return value


def _problems(check: GateCheck, value: float, current: float | None) -> Iterable[str]:
    """What a check does not let pass, each with by how much."""
    if check.at_least is not None and value < check.at_least:
        short = check.at_least - value
        yield f"{check.metric} is {value:.4g}, {short:.4g} under {check.at_least:.4g}"
    if check.at_most is not None and value > check.at_most:
        over = value - check.at_most
        yield f"{check.metric} is {value:.4g}, {over:.4g} over {check.at_most:.4g}"
    if current is None:
        return
    gain = value - current if check.is_higher_better else current - value
    against = f"{check.metric} is {value:.4g} against {current:.4g}"
    if check.max_regression is not None and -gain > check.max_regression:
        yield f"{against}, worse by {-gain:.4g}; allowed is {check.max_regression:.4g}"
    if check.min_gain is not None and gain < check.min_gain:
        yield f"{against}, a gain of {gain:.4g}; wanted is {check.min_gain:.4g}"
