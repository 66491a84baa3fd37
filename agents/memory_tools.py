"""Tools by which a model manages its own memory: remember, recall, and edit core memory.

`memory_tools` makes them for a namespace. A program offers their specs to its model and runs what
the model asks for with `answer_request`; or it adds them to the kernel for all programs.

Source: Packer et al., "MemGPT: Towards LLMs as Operating Systems", 2023 (arXiv 2310.08560).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from llmos.agents.handle import OS
from llmos.syscalls.content import Message, ToolRequest, tool_result
from llmos.syscalls.errors import ErrorCode, SyscallError
from llmos.syscalls.tool import Tool, tool

Text = Annotated[str, Field(min_length=1, max_length=2_000)]
Query = Annotated[str, Field(min_length=1, max_length=200)]
_FOUND = 5
# What the model can do something about; anything else ends the program.
_FOR_THE_MODEL: frozenset[ErrorCode] = frozenset({"tool_invalid", "invalid", "not_found"})


def memory_tools(namespace: str | None = None) -> tuple[Tool, ...]:
    """The four tools over a namespace; None is that of whichever process calls them."""

    async def remember(os: OS, text: Text) -> str:
        """Keep a fact for later conversations."""
        remembered = await os.remember(text, namespace=namespace)
        return "That was known already." if remembered.duplicates else "Remembered."

    async def recall(os: OS, query: Query) -> str:
        """Look up what was said or remembered earlier."""
        namespaces = None if namespace is None else (namespace,)
        hits = await os.retrieve(query, k=_FOUND, namespaces=namespaces)
        return "\n".join(f"- {hit.text}" for hit in hits) or "Nothing in memory fits."

    async def core_memory_append(os: OS, text: Text) -> str:
        """Add a line to what you always know about the user and yourself."""
        return _told(await os.core_memory(append=text, namespace=namespace))

    async def core_memory_replace(
        os: OS, old: Text, new: Annotated[str, Field(max_length=2_000)]
    ) -> str:
        """Replace a passage of what you always know; with an empty text it is removed."""
        return _told(await os.core_memory(replace=old, by=new, namespace=namespace))

    return tuple(map(tool, (remember, recall, core_memory_append, core_memory_replace)))


async def answer_request(os: OS, tools: Sequence[Tool], request: ToolRequest) -> Message:
    """Run what a model asked for, with the caller's rights, and give the result as its message.

    What the model can correct is told to the model. Raises: SyscallError for anything else.
    """
    known = {one.spec.name: one for one in tools}
    chosen = known.get(request.name)
    if chosen is None:
        return tool_result(request, f"There is no tool {request.name}: use {', '.join(known)}.")
    try:
        arguments = chosen.validate(request.arguments)
        return tool_result(request, str(await chosen.function(os, **arguments)))
    except SyscallError as problem:
        if problem.code not in _FOR_THE_MODEL:
            raise
        return tool_result(request, f"Error: {problem.message}")


def _told(core: str) -> str:
    return f"You now always know:\n{core}" if core else "You now know nothing always."
