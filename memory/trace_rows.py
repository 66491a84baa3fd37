"""From episodes to training rows: which are fit to be learnt from, and in which form.

Owns the choice (whole answers, no repetitions, pairs of a better and a worse answer to the same
prompt) and the rows' JSON form, which `drivers/rows/` reads. Everything left out is counted by
reason. Refuses to know who may ask (`kernel/trace_data.py`) and where episodes are kept
(`episodes.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmos.drivers.rows.chat_forms import to_openai, tool_to_openai
from llmos.drivers.rows.redaction import Redactor, redact, redact_messages
from llmos.drivers.tool_text import write_answer, write_tool_requests
from llmos.memory.episodes import Episode
from llmos.syscalls.content import Message
from llmos.syscalls.values import JsonObject

Objective = Literal["instruct", "prefer"]

_WHOLE = ("stop", "tool_requests")  # ways to finish that are not a cut


@dataclass(frozen=True, slots=True)
class TraceRowSet:
    """Rows as JSON lines, and what became of the episodes that are not in them."""

    lines: tuple[str, ...]
    left_out: Counter[str]  # episodes by reason: "cut", "empty", "no text", "duplicate", "unpaired"
    redacted: Counter[str] = field(default_factory=Counter[str])  # personal data by kind

    @property
    def digest(self) -> str:
        """SHA-256 of the rows as a file has them."""
        return hashlib.sha256("".join(self.lines).encode()).hexdigest()


def compose(
    episodes: Sequence[Episode],
    objective: Objective,
    *,
    min_score: float | None,
    redactor: Redactor | None,
    is_deduped: bool,
) -> TraceRowSet:
    """Make rows of episodes, in their order.

    For "instruct" each episode of at least `min_score` is a row whose target is its answer. For
    "prefer" each prompt within a task whose answers were judged differently is a row of its best
    answer, of at least `min_score`, and its worst. `redactor` None leaves personal data in.
    """
    left_out: Counter[str] = Counter()
    fit = [one for one in episodes if _is_fit(one, left_out)]
    if is_deduped:
        fit = _distinct(fit, left_out)
    redacted: Counter[str] = Counter()
    if objective == "instruct":
        kept = [one for one in fit if _reaches(one, min_score)]
        rows = [_instruct(one, redactor, redacted) for one in kept]
    else:
        pairs = _pairs(fit, min_score)
        left_out["unpaired"] = len(fit) - 2 * len(pairs)
        rows = [_prefer(best, worst, redactor, redacted) for best, worst in pairs]
    lines = tuple(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return TraceRowSet(lines, +left_out, redacted)


def _is_fit(one: Episode, left_out: Counter[str]) -> bool:
    reason = None
    if one.finish not in _WHOLE:
        reason = "cut"
    elif not one.messages or any(
        part.type != "text" for message in one.messages for part in message.parts
    ):
        reason = "no text"
    elif not one.answer.text.strip() and not one.answer.tool_requests:
        reason = "empty"
    if reason is not None:
        left_out[reason] += 1
    return reason is None


def _distinct(episodes: Iterable[Episode], left_out: Counter[str]) -> list[Episode]:
    """The best judged of equal episodes; of equally judged ones the first."""
    best: dict[str, Episode] = {}
    for one in episodes:
        key = _digest(_prompt_key(one), write_answer(one.answer))
        other = best.get(key)
        if other is not None:
            left_out["duplicate"] += 1
        if other is None or _score(one) > _score(other):
            best[key] = one
    return sorted(best.values(), key=lambda one: one.id)


def _pairs(episodes: Iterable[Episode], min_score: float | None) -> list[tuple[Episode, Episode]]:
    """The best and the worst answer to each prompt of each task, where they differ."""
    groups: dict[tuple[str, str], list[Episode]] = {}
    for one in episodes:
        if one.score is not None:
            groups.setdefault((one.task, _prompt_key(one)), []).append(one)
    pairs: list[tuple[Episode, Episode]] = []
    for group in groups.values():
        best, worst = max(group, key=_score), min(group, key=_score)
        differ = _score(best) > _score(worst) and write_answer(best.answer) != write_answer(
            worst.answer
        )
        if differ and _reaches(best, min_score):
            pairs.append((best, worst))
    return pairs


def _instruct(one: Episode, redactor: Redactor | None, counts: Counter[str]) -> JsonObject:
    said = _said((*one.messages, one.answer), redactor, counts)
    return {"messages": [to_openai(message) for message in said], **_about(one)}


def _prefer(
    best: Episode, worst: Episode, redactor: Redactor | None, counts: Counter[str]
) -> JsonObject:
    def answer(one: Episode) -> str:
        text = write_answer(one.answer)
        if redactor is None:
            return text
        found = redact(text, redactor)
        counts.update(found.counts)
        return found.text

    asked = _said(best.messages, redactor, counts)
    return {
        "messages": [to_openai(message) for message in asked],
        "chosen": answer(best),
        "rejected": answer(worst),
        **_about(best),
        "rejected_episode": worst.id,
        "rejected_score": worst.score,
    }


def _said(
    messages: tuple[Message, ...], redactor: Redactor | None, counts: Counter[str]
) -> tuple[Message, ...]:
    if redactor is None:
        return messages
    redacted, found = redact_messages(messages, redactor)
    counts.update(found)
    return redacted


def _about(one: Episode) -> JsonObject:
    """Where a row came from; `group` keeps attempts at one task on one side of a split."""
    about: JsonObject = {
        "group": one.task,
        "episode": one.id,
        "score": one.score,
        "namespace": one.namespace,
        "model": one.model,
        "adapter": one.adapter,
    }
    if one.tools:
        about["tools"] = [tool_to_openai(tool) for tool in one.tools]
    return about


def _prompt_key(one: Episode) -> str:
    """What two episodes share when the model was asked the same; ids of requests do not count."""
    parts = [
        part
        for m in one.messages
        for part in (m.role, m.text, write_tool_requests(m), m.name or "")
    ]
    return _digest(*parts, *(tool.model_dump_json() for tool in one.tools))


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _score(one: Episode) -> float:
    return float("-inf") if one.score is None else one.score


def _reaches(one: Episode, min_score: float | None) -> bool:
    return min_score is None or _score(one) >= min_score
