"""Conversations as token ids, by a model's own chat template.

Owns the rendering that all local drivers share: the template in a sandbox, tools, and the line
between markup and content. Refuses to know a tokenizer: it is given one as a function.

Content is never markup. Wherever a text could begin a special token such as <|im_end|>, its first
character is swapped for a stand-in before the template runs and swapped back after the special
tokens were found, so a message cannot end its own turn or open another. For all other text the ids
are those of the plain rendering read at once.

Appending messages appends ids, unless the template itself looks ahead from one message to the next
(SmolLM2's does not): nothing here is rendered by its distance from the end. What the *model* does
with hostile content is another matter; this guards the form of the conversation only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmos.drivers.contract import DeviceError, RequestError
from llmos.drivers.tool_text import (
    TOOL_RESPONSE,
    describe_tools,
    parse_tool_requests,
    write_tool_requests,
)
from llmos.syscalls.content import Message
from llmos.syscalls.results import ToolSpec

__all__ = ["PLAIN_TEMPLATE", "ChatFormat", "parse_tool_requests"]

# For models that come without a template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# What a template's code can raise besides its own errors.
_REFUSALS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
_PRIVATE_USE = range(0xE000, 0xF8FF)


class ChatFormat:
    """One model's conversation format.

    `template` None is a plain transcript. `tokenize` reads text without special tokens; `special`
    gives the id of each special token's text. `begin` is the text of the token that every prompt
    starts with, where the model wants one and its template may not write it; `bos` and `eos` are
    what the template may ask for.
    Raises: DeviceError when the template cannot be read.
    """

    def __init__(
        self,
        template: str | None,
        *,
        tokenize: Callable[[str], list[int]],
        special: Mapping[str, int],
        bos: str = "",
        eos: str = "",
        begin: str | None = None,
    ) -> None:
        source = PLAIN_TEMPLATE if template is None else template
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            variables = find_undeclared_variables(environment.parse(source))
        except TemplateError as problem:
            raise DeviceError(f"the chat template cannot be read: {problem}") from problem
        self._knows_tools = "tools" in variables
        self._tokenize = tokenize
        self._special = {text: token for text, token in special.items() if text}
        self._markup = _pattern(sorted(self._special, key=len, reverse=True))
        self._risky = _risky_pattern(self._special)
        self._texts = {"bos_token": bos, "eos_token": eos}
        self._begin = begin

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer, which `prefix` begins.

        Raises: DeviceError when the template refuses the conversation.
        """
        turns = self._turns(messages, tools)
        offered = [_function(tool) for tool in tools] if tools and self._knows_tools else None
        stand_ins = self._stand_ins([turns, offered, prefix])
        try:
            text = self._template.render(
                messages=_replaced(turns, stand_ins.hide),
                tools=_replaced(offered, stand_ins.hide),
                add_generation_prompt=True,
                **self._texts,
            )
        except _REFUSALS as problem:
            raise RequestError(
                f"the chat template refuses this: {problem}", field="messages"
            ) from problem
        return self._ids(text + stand_ins.hide(prefix), stand_ins)

    def _turns(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Any]:
        """The messages as the template sees them."""
        if self._knows_tools:
            return [_native_turn(message) for message in messages]
        turns = [_plain_turn(message) for message in messages]
        if tools:
            described = describe_tools(tools)
            if turns and turns[0]["role"] == "system":
                turns[0]["content"] = f"{turns[0]['content']}\n\n{described}"
            else:
                turns.insert(0, {"role": "system", "content": described})
        return turns

    def _ids(self, text: str, stand_ins: _StandIns) -> list[int]:
        """Ids of rendered text: special tokens of the markup, and all text between two of them
        tokenised as one run, as the model's tokenizer would.
        """
        ids: list[int] = []
        if self._begin is not None and not text.startswith(self._begin):
            ids.append(self._special[self._begin])
        for part in self._markup.split(text):
            token = self._special.get(part)
            if token is not None:
                ids.append(token)
            elif part:
                ids.extend(self._tokenize(stand_ins.show(part)))
        return ids

    def _stand_ins(self, values: Any) -> _StandIns:
        """Stand-ins that occur in no text of `values`."""
        used = set("".join(_strings(values)))
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        firsts = sorted({text[0] for text in self._special})
        return _StandIns(self._risky, dict(zip(firsts, free, strict=False)))


class _StandIns:
    """Characters that take the place of those which could begin a special token."""

    def __init__(self, risky: re.Pattern[str], stand_ins: Mapping[str, str]) -> None:
        self._risky = risky
        self._hide = stand_ins
        self._show = str.maketrans({hidden: shown for shown, hidden in stand_ins.items()})

    def hide(self, text: str) -> str:
        return self._risky.sub(lambda match: self._hide[match[0]], text)

    def show(self, text: str) -> str:
        return text.translate(self._show)


def _risky_pattern(special: Iterable[str]) -> re.Pattern[str]:
    """Matches a character that, with the next one or at a text's end, could begin a special token.

    The end counts too: a template may trim it and write another message's content right after.
    """
    seconds: dict[str, set[str]] = {}
    for text in special:
        seconds.setdefault(text[0], set()).add(text[1:2])
    options: list[str] = []
    for first, follow in sorted(seconds.items()):
        dangerous = "|".join([r"\s*\Z", *map(re.escape, sorted(follow))])
        options.append(f"{re.escape(first)}(?={dangerous})")
    return re.compile("|".join(options) or "(?!)")


def _pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """Splits text at special tokens, which are kept."""
    return re.compile(f"({'|'.join(re.escape(text) for text in texts)})" if texts else "((?!))")


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, replace: Callable[[str], str]) -> Any:
    """The value with every string replaced, keys too."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {_replaced(key, replace): _replaced(item, replace) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, replace) for item in value]
    return value


def _plain_turn(message: Message) -> dict[str, Any]:
    """A message for a template that knows neither tools nor their results."""
    if message.role == "tool":
        return {"role": "user", "content": TOOL_RESPONSE.format(text=message.text)}
    spoken = (message.text, write_tool_requests(message))
    return {"role": message.role, "content": "\n".join(part for part in spoken if part)}


def _native_turn(message: Message) -> dict[str, Any]:
    """A message for a template that renders tools itself, in the form that such templates share."""
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_requests:
        turn["tool_calls"] = [
            {
                "id": request.id,
                "type": "function",
                "function": {"name": request.name, "arguments": request.arguments},
            }
            for request in message.tool_requests
        ]
    if message.role == "tool":
        turn["name"] = message.name or ""
        turn["tool_call_id"] = message.tool_request_id or ""
    return turn


def _function(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it, with no way out to Python."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Any] = environment.globals
    functions["raise_exception"] = _raise
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)
