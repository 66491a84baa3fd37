"""What servers with OpenAI's protocol add to it, each in its own words.

OpenAI's fields say the same to every server. Beyond them, a setting that a server has no word for
is refused: leaving it out would change what the answer means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from llmos.drivers.chat_model import UnsupportedError
from llmos.syscalls.options import (
    ChoiceConstraint,
    Constraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    Sampling,
)
from llmos.syscalls.values import JsonObject

_DEFAULT = Sampling()
# The fields of `Sampling` that OpenAI's protocol has.
_COMMON = {
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
}
_MORE = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}


@dataclass(frozen=True)
class Dialect:
    """The words of one kind of server.

    `sampling` maps our settings to its fields; `plain` are the fields that undo defaults of the
    server which are not ours.
    """

    name: str
    sampling: Mapping[str, str] = field(default_factory=lambda: dict(_COMMON))
    plain: JsonObject = field(default_factory=dict[str, Any])
    prefix: JsonObject | None = None  # how to have the last message continued, if it can be
    choice: Callable[[tuple[str, ...]], JsonObject] | None = None
    regex: Callable[[str], JsonObject] | None = None
    has_slots: bool = False
    seeds: int = 2**63
    session: str | None = None  # the field that names a session

    def sampled(self, sampling: Sampling) -> JsonObject:
        """The fields for sampling settings. Raises: UnsupportedError."""
        body: JsonObject = {**self.plain, "temperature": sampling.temperature}
        for name, value in sampling:
            if value == getattr(_DEFAULT, name) or (name == "seed" and sampling.temperature == 0):
                continue
            if name == "logit_bias":
                body[name] = {str(token): bias for token, bias in sampling.logit_bias.items()}
            elif name in self.sampling:
                body[self.sampling[name]] = value % self.seeds if name == "seed" else value
            else:
                raise self._unsupported(f"sampling.{name}")
        return body

    def constrained(self, constraint: Constraint) -> JsonObject:
        """The fields for a constraint. Raises: UnsupportedError."""
        match constraint:
            case JsonSchemaConstraint(json_schema=schema):
                named = {"name": "answer", "schema": schema, "strict": True}
                return {"response_format": {"type": "json_schema", "json_schema": named}}
            case ChoiceConstraint(choices=choices) if self.choice is not None:
                return self.choice(choices)
            case RegexConstraint(pattern=pattern) if self.regex is not None:
                return self.regex(pattern)
            case ChoiceConstraint() | RegexConstraint() | GrammarConstraint():
                raise self._unsupported(f"constraint.{constraint.type}")
            case _:
                assert_never(constraint)

    def prefixed(self) -> JsonObject:
        """The fields that have the last message continued. Raises: UnsupportedError."""
        if self.prefix is None:
            raise self._unsupported("prefix")
        return self.prefix

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"a server of kind {self.name} has no means for it; leave it out or use another model",
            field=what,
        )


def _grammar_of(choices: tuple[str, ...]) -> JsonObject:
    """A choice in llama.cpp's grammar notation, whose strings are written as JSON's are."""
    return {"grammar": "root ::= " + " | ".join(json.dumps(choice) for choice in choices)}


_LLAMA_PLAIN: JsonObject = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}

OPENAI = Dialect("openai", session="prompt_cache_key")
LLMOS = Dialect("llmos", sampling={**_COMMON, **_MORE}, session="prompt_cache_key")
VLLM = Dialect(
    "vllm",
    sampling={**_COMMON, **_MORE},
    plain={"top_k": -1, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
    prefix={"continue_final_message": True, "add_generation_prompt": False},
    choice=lambda choices: {"structured_outputs": {"choice": list(choices)}},
    regex=lambda pattern: {"structured_outputs": {"regex": pattern}},
)
LLAMA_SERVER = Dialect(
    "llama-server",
    sampling={
        **_COMMON,
        **_MORE,
        "repetition_penalty": "repeat_penalty",
        "penalty_window_tokens": "repeat_last_n",
    },
    plain=_LLAMA_PLAIN,
    prefix={},
    choice=_grammar_of,
    has_slots=True,
    seeds=2**32,
)
LLAMA_CPP_PYTHON = Dialect(
    "llama-cpp-python",
    sampling={
        **_COMMON,
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
    },
    plain=_LLAMA_PLAIN,
    choice=_grammar_of,
    seeds=2**32,
)
_BY_OWNER = {
    "llamacpp": LLAMA_SERVER,
    "llmos": LLMOS,
    "me": LLAMA_CPP_PYTHON,
    "vllm": VLLM,
}


def dialect_of(card: Mapping[str, Any]) -> Dialect:
    """The dialect of a server by an entry of its list of models: its owner tells the program."""
    return _BY_OWNER.get(str(card.get("owned_by")), OPENAI)
