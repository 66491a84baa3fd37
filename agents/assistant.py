"""A personal assistant: one lasting conversation with one person, over any number of starts.

The window, what left it and core memory live in the person's namespace. After every answer the
context is saved, so that the next start goes on where this one was ended, however it was. What
fits a question comes back into the window by itself; a model that can use tools may also manage
its memory.
"""

from __future__ import annotations

from llmos.agents.handle import OS
from llmos.agents.memory_tools import answer_request, memory_tools
from llmos.agents.prompts import prompt
from llmos.agents.text import read_lines
from llmos.syscalls import calls
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Delta, Generated
from llmos.syscalls.tool import Tool

CONVERSATION = "assistant"
_TOOL_ROUNDS = 4  # after so many the model answers without tools


async def assistant(
    os: OS,
    *,
    user: str = "me",
    model: str | None = None,
    budget_tokens: int | None = None,
    max_tokens: int = 128,
    with_tools: bool = False,
) -> int:
    """Answer the lines of standard input, remembering a person; returns the number of answers.

    `user` names the person, whose namespace `user-NAME` the process needs to read and write.
    `budget_tokens` holds for a conversation that begins; `with_tools` offers memory tools.
    """
    namespace = f"user-{user}"
    context = await _conversation(os, namespace, model, budget_tokens)
    tools = memory_tools(namespace) if with_tools else ()
    answers = 0
    async for line in read_lines(os):
        if not line.strip():
            continue
        try:
            await _answer(os, context, prompt("assistant").turn(line=line), tools, max_tokens)
        except SyscallError as problem:
            if problem.code != "context_overflow":
                raise
            await os.print(problem)  # the line is too long; the next one may do
            continue
        await os.context_save(context, CONVERSATION, namespace=namespace)
        answers += 1
    return answers


async def _conversation(
    os: OS, namespace: str, model: str | None, budget_tokens: int | None
) -> int:
    """The person's conversation as it was saved, or a new one."""
    try:
        return await os.context_restore(CONVERSATION, namespace=namespace)
    except SyscallError as problem:
        if problem.code != "not_found":
            raise
    return await os.context_open(
        prompt("assistant").opening(),
        model=model,
        budget_tokens=budget_tokens,
        namespace=namespace,
        has_core=True,
    )


async def _answer(
    os: OS, context: int, line: Message, tools: tuple[Tool, ...], max_tokens: int
) -> None:
    """Write the answer as it comes; requests of the model are served before it."""
    messages: tuple[Message, ...] = (line,)
    for turn in range(_TOOL_ROUNDS + 1):
        offered = tools if turn < _TOOL_ROUNDS else ()
        call = calls.Generate(
            messages=messages,
            context=context,
            max_tokens=max_tokens,
            tool_specs=tuple(one.spec for one in offered),
        )
        requests = ()
        async for piece in os.stream_call(call):
            if isinstance(piece, Delta):
                if not tools:  # with tools a piece may be a part of a request
                    await os.write(piece.text)
            else:
                requests = piece.message.tool_requests
                if tools and not requests:
                    await os.write(_spoken(piece))
        if not requests:
            break
        messages = tuple([await answer_request(os, tools, request) for request in requests])
    await os.write("\n")


def _spoken(generated: Generated) -> str:
    return generated.text.strip()
