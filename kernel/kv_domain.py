"""Who may reuse the KV of a generation: its domain, and how much of its prompt is public.

By default a program shares with its lineage, the process below init that it descends from with all
its descendants; where it is known on whose behalf a process runs (the clients of the HTTP server),
with all that runs on the same behalf. And everybody shares what is public: the first system
message with the tools offered, as the model's template writes them. Whoever could see by the time
of an answer that such a prefix was computed before learns only that somebody has the same
instructions.

A lineage's domain ends with the kernel: no process of a later one is the same. That of init, which
stands for whoever embeds the kernel, lasts, and so does a client's.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, assert_never

from llmos.drivers.contract import DeviceError
from llmos.kernel.process import INIT, Process
from llmos.memory.kv_owner import passing_domain
from llmos.syscalls.content import Message, TextPart
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec

log = logging.getLogger("llmos.kernel")

Sharing = Literal["lineage", "all", "none"]
_MOST_PREFIXES = 256

Render = Callable[[Sequence[Message]], list[int]]


def domain_of(process: Process, sharing: Sharing) -> str:
    """Who shares with a process: by lineage, everybody ("all"), or itself alone ("none")."""
    match sharing:
        case "all":
            return ""
        case "lineage" if process.client:
            return f"client {process.client}"
        case "lineage":
            root = process.root.pid
            return "init" if root == INIT else passing_domain(f"{process.boot}-{root}")
        case "none":
            return passing_domain(f"{process.boot}-process-{process.pid}")
        case _:
            assert_never(sharing)


def ends_with(process: Process, sharing: Sharing) -> bool:
    """Whether a process's domain ends when it does: its descendants, if any, start anew."""
    match sharing:
        case "all":
            return False
        case "lineage":
            # A client's requests are processes of their own, and the next one needs what this left.
            return not process.client and process.pid == process.root.pid != INIT
        case "none":
            return True
        case _:
            assert_never(sharing)


class PublicPrefixes:
    """How a conversation begins, whatever is said in it; what was rendered once is remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, ...], list[int]] = OrderedDict()

    def tokens(
        self,
        prompt: Sequence[int],
        messages: Sequence[Message],
        specs: Sequence[ToolSpec],
        *,
        model: str,
        render: Render,
    ) -> int:
        """How many tokens of a prompt are public.

        They are those that it has in common with a conversation of the same first system message
        and tools that says nothing else, so that nothing private is among them, however the
        template and the tokenizer work.
        """
        first = messages[0] if messages and messages[0].role == "system" else None
        key = (model, first.text if first else "", *(spec.model_dump_json() for spec in specs))
        known = self._known.pop(key, None)
        if known is None:
            known = _render_alone(first, render)
        self._known[key] = known
        if len(self._known) > _MOST_PREFIXES:
            self._known.popitem(last=False)
        return common_tokens(prompt, known)


def _render_alone(first: Message | None, render: Render) -> list[int]:
    """A conversation without content; empty where the template refuses that."""
    nothing = Message(role="user", parts=(TextPart(text=""),))
    try:
        return render([nothing] if first is None else [first, nothing])
    except (SyscallError, DeviceError) as problem:
        log.debug("nothing is shared across programs: %s", problem)
        return []


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next(
        (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )
