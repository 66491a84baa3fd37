"""The shipped programs' prompts, as data: `prompts.toml` is read once and checked as it is read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from llmos.syscalls.content import Message, assistant, system, user
from llmos.syscalls.values import JsonObject, Value

_FILE = Path(__file__).with_name("prompts.toml")


class Shot(Value):
    """A worked example: what the user says and the answer to it."""

    user: str
    assistant: str


class Prompt(Value):
    """A prompt with `{fields}` in its system and user texts; shots are taken as they stand."""

    system: str | None = None
    shots: tuple[Shot, ...] = ()
    user: str

    def messages(self, **fields: object) -> list[Message]:
        """The whole prompt, filled in: system, shots, the user's turn."""
        return [*self.opening(**fields), self.turn(**fields)]

    def opening(self, **fields: object) -> list[Message]:
        """The part that is the same for all who share a role."""
        messages = [] if self.system is None else [system(self.system.format(**fields))]
        for shot in self.shots:
            messages += [user(shot.user), assistant(shot.assistant)]
        return messages

    def turn(self, **fields: object) -> Message:
        """The user's turn, filled in."""
        return user(self.user.format(**fields))


class Example(Value):
    """A task worked with one tool call, for `react`."""

    task: str
    tool: str
    arguments: JsonObject
    result: str
    answer: str


@cache
def prompt(name: str) -> Prompt:
    """A prompt by name. Raises: KeyError."""
    return _prompts()[name]


@cache
def examples() -> tuple[Example, ...]:
    """The worked tasks for `react`."""
    return TypeAdapter(tuple[Example, ...]).validate_python(_tables()["examples"], strict=False)


@cache
def _prompts() -> Mapping[str, Prompt]:
    tables = {name: table for name, table in _tables().items() if name != "examples"}
    return TypeAdapter(dict[str, Prompt]).validate_python(tables)


@cache
def _tables() -> JsonObject:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
