"""The calls by which traces of agents become training data, and what they return.

An episode is one answered `Generate`: what the model read, what it answered, and by which weights.
It is stored only while its namespace consents.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmos.syscalls.call import Call
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import Value


class Consent(Value):
    """What was recorded about a namespace; a withdrawal deleted `deleted_episodes`."""

    namespace: str
    is_granted: bool
    at: float
    by: str
    deleted_episodes: int = 0


class Judged(Value):
    """The ids of the episodes that got the outcome."""

    episodes: tuple[int, ...]


class TraceRows(Value):
    """A file of rows made of episodes.

    `left_out` counts episodes by reason: "cut" (the answer was cut off), "empty", "no text",
    "duplicate", "unpaired" (no better or worse answer to the same prompt), "lost" (the disk refused
    them). `redacted` counts personal data by kind, `digest` is the file's SHA-256.
    """

    path: str
    rows: int
    episodes: int
    left_out: dict[str, int] = {}
    redacted: dict[str, int] = {}
    digest: str
    models: tuple[str, ...] = ()


class TraceConsent(Call[Consent]):
    """Allow or forbid that the traces of a namespace are kept to be learnt from.

    A process that runs for a client is asked about by the client's name. Any other is by its own
    namespace or, where nothing was said of it, that of the nearest process it descends from. None
    is the caller's own. Nothing is kept without consent; a withdrawal deletes what was kept.
    """

    op: Literal["trace_consent"] = "trace_consent"
    namespace: str | None = Field(default=None, min_length=1)
    is_granted: bool = True


class Outcome(Call[Judged]):
    """Say how episodes turned out: those of a process and its descendants, or one by its id.

    `reward` is on any scale, the higher the better. `verdict` is a verifier's, `thumb` a user's;
    without a reward they count 1 (pass, up) or 0 (fail, down), the verdict first. `task` names what
    was attempted, so that attempts are compared; by default it is the program with a digest of the
    first thing that the user says. Nobody judges themselves but init.
    """

    op: Literal["outcome"] = "outcome"
    pid: int | None = None
    episode: int | None = None
    reward: float | None = None
    verdict: Literal["pass", "fail"] | None = None
    thumb: Literal["up", "down"] | None = None
    task: str | None = Field(default=None, min_length=1)
    note: str | None = None

    @model_validator(mode="after")
    def _is_about_something(self) -> Self:
        if (self.pid is None) == (self.episode is None):
            raise SyscallError("invalid", "pid: give either pid or episode", field="pid")
        if all(one is None for one in (self.reward, self.verdict, self.thumb, self.task)):
            raise SyscallError(
                "invalid", "reward: give a reward, a verdict, a thumb or a task", field="reward"
            )
        return self


class TraceData(Call[TraceRows]):
    """Write a JSONL file of training rows, made of episodes, into the caller's home.

    `namespaces` None is the caller's own. For "instruct" each episode whose score reaches
    `min_reward` is a row; for "prefer" each prompt of a task with a best answer that reaches it and
    a worse one. `min_reward` None takes episodes that nobody judged, too. `since` is seconds since
    1970; with `limit`, the newest episodes are looked at. `redact` replaces personal data.
    """

    op: Literal["trace_data"] = "trace_data"
    namespaces: tuple[str, ...] | None = None
    objective: Literal["instruct", "prefer"] = "instruct"
    min_reward: float | None = 1.0
    since: float | None = None
    limit: int | None = Field(default=None, ge=1)
    redact: bool = True
    dedupe: bool = True
    path: str = Field(default="traces.jsonl", min_length=1)
