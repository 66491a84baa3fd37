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


# The version's name, None for the base itself, and the check whose set is to be measured.
Measure = Callable[[str | None, GateCheck], Awaitable[Measured]]


async def judge(
    checks: Iterable[GateCheck],
    *,
    version: str,
    current: str | None,
    measure: Measure,
    has_base: bool = True,
) -> tuple[GateFigure, ...]:
    """What each check finds of a version, against the one that serves now.

    Where none serves it is compared with the base itself, unless that can do nothing of the kind
    (`has_base`: an encoder without its head), and then with nothing.
    Raises: SyscallError("invalid") for a metric that a set does not give, naming those it does;
    whatever measuring raises.
    """
    known: dict[tuple[str | None, str, str | None], Measured] = {}

    async def measured(name: str | None, check: GateCheck) -> Measured:
        key = (name, check.data, check.objective)
        if key not in known:
            known[key] = await measure(name, check)
        return known[key]

    figures: list[GateFigure] = []
    for check in checks:
        found = await measured(version, check)
        before = None
        is_compared = check.max_regression is not None or check.min_gain is not None
        if is_compared and (current is not None or has_base):
            before = _metric(await measured(current, check), check)
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
