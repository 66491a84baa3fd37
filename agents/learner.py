"""The loop by which an agent learns from what it did: collect, filter, train, evaluate, promote.

`learner` is an ordinary program. It lets a practice try tasks (a program with the keywords and the
result of the one in `tool_practice.py`), keeps the attempts that were right, trains a version on
all that was kept so far, lets the practice try held-out tasks with it, and promotes it when it is
better than the version in use beyond doubt. Promotion reaches every agent on that base at its next
call.

Each stage that is over is a line in the loop's folder (`learn_record.py`), so that a loop which was
killed, or whose budget was spent, goes on when it is started again with the same folder; a training
job that was under way resumes from its own checkpoint. The folder holds the rows of each round and
a report too. Refuses to know what the tasks are, and how weights change.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from llmos.agents.handle import OS
from llmos.agents.learn_plan import Plan, changed_fields, make_plan
from llmos.agents.learn_record import (
    Collected,
    Ended,
    Ending,
    Event,
    Judged,
    Measured,
    Record,
    Started,
    TrainedVersion,
    Verdict,
)
from llmos.agents.learn_report import html_report, markdown_report
from llmos.agents.learn_rows import LearnRow, balanced, from_traces, kept, read, written
from llmos.agents.learn_statistics import Interval, gain, success_rate
from llmos.syscalls.calls import Finetune
from llmos.syscalls.errors import Killed, SyscallError, invalid
from llmos.syscalls.rights import Quota
from llmos.syscalls.values import JsonObject

# The seed of the held-out tasks: every version of a loop is measured on the same ones.
_HELD_OUT_SEED = 0
_WORKED_SHOWN = 60
DEFAULT_SETTINGS: JsonObject = {
    "epochs": 4.0,
    "max_steps": 80,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "max_length_tokens": 512,
    "eval_share": 0.0,
    "checkpoint_steps": 8,  # a loop that was cut loses little
}


class Spent(Exception):
    """The budget does not allow another stage."""

    def __init__(self, why: Ending) -> None:
        super().__init__(why)
        self.why: Ending = why


async def learner(os: OS, folder: str, **plan: Any) -> JsonObject:
    """Run a learning loop to the end of its plan, or on from where it was.

    `folder` keeps everything; the keywords are the fields of `learn_plan.Plan`.
    Returns `{"rounds", "version", "before", "after", "why", "report"}`; before and after are the
    success rates on the held-out tasks of what was in use at first and of what is now.
    Raises: SyscallError("invalid") for a plan that is wrong, or not that of the loop in `folder`.
    """
    record = await Record.open(os, folder)
    loop = _Loop(os, folder, _checked(record, plan), record)
    await loop.note(Started(plan=loop.plan.model_dump(mode="json"), at=_now()))
    why = await loop.run()
    await loop.note(Ended(why=why))
    return loop.outcome(why)


class _Loop:
    def __init__(self, os: OS, folder: str, plan: Plan, record: Record) -> None:
        self.os = os
        self.folder = folder
        self.plan = plan
        self.record = record

    async def run(self) -> Ending:
        """Rounds until the plan ends them; returns why."""
        begun_s: float | None = None
        try:
            await self._measure(self.record.in_use, self.record.rounds)
            while True:
                if self.record.trained(self.record.rounds + 1) is None:
                    self._check_budget()
                if self.record.rounds >= (self.plan.rounds or self.record.rounds + 1):
                    return "rounds"
                if self.record.discarded >= self.plan.patience:
                    return "patience"
                if begun_s is not None:
                    await self.os.sleep(max(0.0, begun_s + self.plan.every_s - time.monotonic()))
                begun_s = time.monotonic()
                await self._round(self.record.rounds + 1)
        except Spent as spent:
            return spent.why

    async def note(self, event: Event) -> None:
        """Keep an event, tell of it, and bring the report up to date."""
        await self.record.add(event)
        await self.os.print(json.dumps(_shown(event), ensure_ascii=False))
        title = f"{self.plan.name}: learning by {self.plan.practice}"
        await self.os.write_text(
            f"{self.folder}/report.md", markdown_report(title, self.record.events)
        )
        await self.os.write_text(
            f"{self.folder}/report.html", html_report(title, self.record.events)
        )

    def outcome(self, why: Ending) -> JsonObject:
        """What the program returns."""
        measured = [event for event in self.record.events if isinstance(event, Measured)]
        now = self.record.measured(self.record.in_use)
        return {
            "rounds": self.record.rounds,
            "version": self.record.in_use,
            "before": success_rate(measured[0].outcomes)._asdict() if measured else None,
            "after": success_rate(now.outcomes)._asdict() if now else None,
            "why": why,
            "report": f"{self.folder}/report.html",
        }

    # --- one round --------------------------------------------------------------------------------

    async def _round(self, number: int) -> None:
        """Whatever of a round is not in the record yet."""
        collected = self.record.collected(number) or await self._collect(number)
        if collected.untrained_rows < self.plan.min_rows:
            await self.note(Judged(round=number, verdict="too_little_data"))
        else:
            trained = self.record.trained(number) or await self._train(number)
            await self._judge(number, trained)

    async def _collect(self, number: int) -> Collected:
        """Let the agent try new tasks, and keep what was right."""
        earlier = await self._rows_until(number - 1)
        started = time.monotonic()
        tried: JsonObject = {"episodes": [], "tokens": 0}
        if self.plan.tasks:
            tried = await self._practise(
                quota=self._left(),
                split="train",
                count=self.plan.tasks,
                seed=self.plan.seed + number,
                attempts=self.plan.attempts,
                temperature=self.plan.temperature,
                worked=[{"task": r.task, "said": r.said} for r in earlier[-_WORKED_SHOWN:]],
            )
        episodes: list[JsonObject] = tried["episodes"]
        rows = kept([*episodes, *await self._traced(number)], earlier)
        await self.os.write_text(self._rows_path(number), written(rows))
        total = len(earlier) + len(rows)
        event = Collected(
            round=number,
            tried=self.plan.tasks,
            attempts=len(episodes),
            solved=len({one["task"] for one in episodes if one["reward"] > 0}),
            rows=len(rows),
            by_kind=dict(sorted(Counter(row.kind for row in rows).items())),
            all_rows=total,
            untrained_rows=total - self.record.last_trained_rows(),
            seconds=round(time.monotonic() - started, 2),
            tokens=tried["tokens"],
        )
        await self.note(event)
        return event

    async def _traced(self, number: int) -> list[JsonObject]:
        """What other agents did well, as episodes; those who consented to it."""
        if not self.plan.traces:
            return []
        name = f"traces-{number:03}.jsonl"
        await self.os.trace_data(self.plan.traces, min_reward=self.plan.min_reward, path=name)
        return from_traces(await self.os.read_text(name))

    async def _train(self, number: int) -> TrainedVersion:
        """Train a version on all rows so far, unless an interrupted run had it trained already.

        Raises: Spent.
        """
        self._check_budget()
        name = f"{self.plan.name}-{number}"
        rows = balanced(await self._rows_until(number), self.plan.data_share)
        path = f"{self.folder}/train-{number:03}.jsonl"
        text = written(rows)
        await self.os.write_text(path, text)
        started = time.monotonic()
        known = {version.name: version for version in await self.os.model_list()}
        base, losses, tokens = None, list[Any](), 0
        if name in known:
            digest = hashlib.sha256(text.encode()).hexdigest()
            if known[name].data_hashes.get("train") != digest:
                raise SyscallError(
                    "invalid",
                    f"name: the version {name} was trained on other rows than this loop's; give "
                    "the loop another name, or delete that version",
                    field="name",
                )
            base = known[name].base
        else:
            settings = {**DEFAULT_SETTINGS, **self.plan.settings}
            if self.plan.base is not None:
                settings["base"] = self.plan.base
            trained: Any = await self._child_result(await self.os.finetune(path, name, **settings))
            base, losses = trained["version"]["base"], trained["losses"]
            tokens = trained["tokens"]
        event = TrainedVersion(
            round=number,
            version=name,
            base=base,
            rows=len(await self._rows_until(number)),
            losses=tuple((int(step), float(loss)) for step, loss in losses),
            seconds=round(time.monotonic() - started, 2),
            tokens=tokens,
        )
        await self.note(event)
        return event

    async def _judge(self, number: int, trained: TrainedVersion) -> None:
        """Promote a version that is better than the one in use, as far as can be told."""
        against = await self._promoted(trained.base)
        before = await self._measure(against, number)
        after = await self._measure(trained.version, number)
        found = gain(before.outcomes, after.outcomes)
        verdict: Verdict = "discarded"
        why = ""
        if found.low > self.plan.min_gain:
            verdict, why = await self._promote(trained.version, found)
        await self.note(
            Judged(
                round=number,
                verdict=verdict,
                version=trained.version,
                against=against,
                gain=found,
                why=why,
            )
        )

    async def _promote(self, version: str, found: Interval) -> tuple[Verdict, str]:
        """Ask for a promotion; the gate of the slot and the plan's checks may refuse it."""
        reason = f"gain {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        try:
            await self.os.model_promote(version, checks=self.plan.checks, reason=reason)
        except SyscallError as problem:
            if problem.code != "refused":
                raise
            return "refused", problem.message
        return "promoted", ""

    # --- parts of a round -------------------------------------------------------------------------

    async def _measure(self, version: str | None, number: int) -> Measured:
        """A version's outcomes on the held-out tasks; what was measured once is not again.

        No budget cuts this short: what was trained is judged.
        """
        if known := self.record.measured(version):
            return known
        started = time.monotonic()
        value = await self._practise(
            split="dev", count=self.plan.eval_tasks, seed=_HELD_OUT_SEED, adapter=version
        )
        episodes: list[JsonObject] = value["episodes"]
        event = Measured(
            round=number,
            # Without a version named, the one in use answered.
            version=value["adapter"] if version is None else version,
            outcomes=tuple(float(one["reward"] > 0) for one in episodes),
            kinds=tuple(one["kind"] for one in episodes),
            seconds=round(time.monotonic() - started, 2),
            tokens=value["tokens"],
        )
        await self.note(event)
        return event

    async def _practise(self, *, quota: Quota | None = None, **options: Any) -> Any:
        """Let the practice try tasks. Raises: Spent when the quota, made of the budget, is used."""
        pid = await self.os.spawn(
            self.plan.practice, model=self.plan.model, quota=quota or Quota(), **options
        )
        try:
            return await self._child_result(pid)
        except SyscallError as problem:
            if problem.code != "quota_exceeded" or quota is None:
                raise
            is_tokens = problem.fields.get("quota") == "tokens_out"
            raise Spent("tokens" if is_tokens else "seconds") from problem

    def _left(self) -> Quota:
        """What is left of the budget, for a practice that collects."""
        plan, record = self.plan, self.record
        return Quota(
            wall_s=None if plan.seconds is None else plan.seconds - record.seconds,
            tokens_out=None if plan.tokens is None else plan.tokens - record.tokens,
        )

    async def _child_result(self, pid: int) -> Any:
        """A child's value; a child does not outlive a loop that is told to end."""
        try:
            return await self.os.result(pid)
        except Killed:
            await self.os.signal(pid, "TERM")
            raise

    async def _promoted(self, base: str | None) -> str | None:
        """The version of a base that calls use which name none."""
        versions = await self.os.model_list()
        return next((v.name for v in versions if v.base == base and v.is_promoted), None)

    def _check_budget(self) -> None:
        """Raises: Spent."""
        plan, record = self.plan, self.record
        if plan.seconds is not None and record.seconds >= plan.seconds:
            raise Spent("seconds")
        if plan.tokens is not None and record.tokens >= plan.tokens:
            raise Spent("tokens")

    async def _rows_until(self, number: int) -> list[LearnRow]:
        """The rows of the rounds up to one, oldest first."""
        rows: list[LearnRow] = []
        for one in range(1, number + 1):
            rows += read(await self.os.read_text(self._rows_path(one)))
        return rows

    def _rows_path(self, number: int) -> str:
        return f"{self.folder}/rows-{number:03}.jsonl"


# --- internals ------------------------------------------------------------------------------------


def _checked(record: Record, fields: JsonObject) -> Plan:
    plan = make_plan(fields)
    try:
        Finetune(data="rows", name=plan.name, **{**DEFAULT_SETTINGS, **plan.settings})
    except ValidationError as problem:
        fault = invalid(problem)
        raise SyscallError("invalid", f"settings.{fault.message}", field="settings") from problem
    if record.plan is not None and (different := changed_fields(record.plan, plan)):
        raise SyscallError(
            "invalid",
            f"folder: it holds a loop with other {', '.join(different)}; give another folder, or "
            "the same plan to go on",
            field="folder",
        )
    return plan


def _shown(event: Event) -> JsonObject:
    """An event for whoever watches: rates in place of every single outcome."""
    shown = event.model_dump(mode="json", exclude={"outcomes", "kinds"})
    if isinstance(event, Measured):
        shown["success"] = success_rate(event.outcomes)._asdict()
    return shown


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
